"""docs/api.md, run as printed: every block in order, every reply as the page shows it."""

from pathlib import Path

import httpx
from pageblocks import Reader, blocks_of, values_in, without_varying

from gradalign import errors

PAGE = Path(__file__).parents[2] / "docs/api.md"


def test_every_reply_of_the_page_is_the_scorers(scorer, start_scorer, tmp_path):
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text("a-key\nteam-key runs=team-* read-only\n")
    second = start_scorer("--api-key-file", str(keys), "--max-streams", "1", DRAIN_SECONDS="0")
    without_store = start_scorer(redis_url="redis://127.0.0.1:9", DRAIN_SECONDS="0")
    addresses = {
        "http://127.0.0.1:8000": scorer.url,
        "http://127.0.0.1:8001": second.url,
        "http://127.0.0.1:8002": without_store.url,
    }
    blocks = blocks_of(PAGE.read_text(), "sh", "python")
    with Reader(addresses, tmp_path) as reader:
        for block in blocks:
            reply = reader.run(block)
            if block.printed is not None:
                shown, real = (without_varying(values_in(text)) for text in (block.printed, reply))
                assert real == shown, f"docs/api.md, line {block.line}"
        reader.scope["client"].close()
        reader.scope["several"].close()
    assert sum(block.printed is not None for block in blocks) > 35


def test_every_route_and_error_type_is_on_the_page(scorer):
    text = PAGE.read_text()
    for path in httpx.get(f"{scorer.url}/openapi.json").json()["paths"]:
        assert f"{path}`" in text, path
    classes = [getattr(errors, name) for name in errors.__all__ if issubclass(getattr(errors, name), errors.WireError)]
    for kind in {error.type for error in classes}:
        assert f"`{kind}`" in text, kind
