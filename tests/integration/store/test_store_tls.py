"""A cluster and Sentinels by TLS, with a certificate of our own authority; a relay speaks TLS for servers that cannot."""

import shutil
from contextlib import ExitStack, contextmanager

import pytest
from authority import Authority, tls_relay
from clusters import Node, cluster, free_ports, until

from gradalign import Unavailable

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


@contextmanager
def _cluster(folder, cert, key):
    (port,) = free_ports(1)
    with ExitStack() as stack:
        made = stack.enter_context(cluster(folder, primaries=1, cluster_announce_port=str(port)))
        stack.enter_context(tls_relay(port, made.nodes[0].port, cert, key))
        yield f"rediss+cluster://127.0.0.1:{port}"


@contextmanager
def _sentinel(folder, cert, key):
    """One Sentinel, which tells the address of the primary's relay."""
    ports = free_ports(4)
    file = folder / "sentinel.conf"
    file.write_text(f"sentinel monitor store 127.0.0.1 {ports[2]} 1\n")
    with ExitStack() as stack:
        primary = Node(folder / "primary", ports[0], save="")
        stack.callback(primary.end)
        stack.enter_context(tls_relay(ports[2], ports[0], cert, key))
        sentinel = Node(folder / "sentinel", ports[1], (str(file), "--sentinel"))
        stack.callback(sentinel.end)
        stack.enter_context(tls_relay(ports[3], ports[1], cert, key))
        until(lambda: sentinel.plain.sentinel_masters()["store"]["flags"] == "master")
        yield f"rediss+sentinel://127.0.0.1:{ports[3]}/store"


@pytest.mark.parametrize("store", [_cluster, _sentinel])
def test_tls_is_spoken_to_every_server_and_a_stranger_to_the_authority_is_refused(kit, tmp_path, store):
    authority = Authority(tmp_path)
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger")

    async def served(opened):
        assert await opened.check() == ()
        await opened.commit_refresh(kit.refresh(1))
        return (await opened.run_state(kit.run_id)).validation_version

    async def refused(opened):
        with pytest.raises(
            Unavailable, match=r"CERTIFICATE_VERIFY_FAILED|No master found for 'store' : 127\.0\.0\.1:\d+ - \S+Error\)"
        ):
            await opened.commit_refresh(kit.refresh(1))

    (tmp_path / "store").mkdir()
    with store(tmp_path / "store", *authority.sign("store")) as url:
        assert kit.run(served, url=f"{url}?ssl_ca_certs={authority.cert}") == 1
        kit.run(refused, url=f"{url}?ssl_ca_certs={stranger.cert}")
        kit.run(refused, url=url)
