"""Capture against one backward a problem, over every causal-LM type of transformers that builds from a tiny configuration.

    python tests/bench/sweep_capture.py [--only qwen2 mamba] [--json FILE] [--rows]

Each type is built in float32 with random weights: a batch of 4 rows of 3 problems is captured, and each problem's loss is
run backward alone. A type is exact where every sketch agrees to 1e-3 of its norm, refused where capture raises
SketchError, crashed where it raises anything else, and wrong otherwise. Types that do not build or do not run without
capture are left out and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradalign import SketchError
from gradalign.sketch import Sketcher

VOCABULARY, ROWS, LENGTH, INDEX = 64, 4, 6, torch.tensor([0, 1, 1, 2])
LARGEST = 20_000_000  # parameters that a configuration called tiny may give
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "word_embed_proj_dim": 32,
    "embedding_size": 32, "emb_dim": 32, "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "d_inner": 48,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "dim_ff": 48, "ffn_hidden_size": 48, "num_hidden_layers": 2,
    "num_layers": 2, "n_layer": 2, "n_layers": 2, "decoder_layers": 2, "encoder_layers": 1, "num_decoder_layers": 2,
    "num_encoder_layers": 1, "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "dim_head": 8,
    "rotary_dim": 4, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12, "moe_shared_expert_intermediate_size": 12,
    "n_group": 2, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 4, "qk_head_dim": 8, "first_k_dense_replace": 1, "state_size": 4, "ssm_state_size": 4,
    "mamba_d_state": 4, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1,
    "mamba_n_groups": 1, "chunk_size": 4, "mamba_chunk_size": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "attention_hidden_size": 32, "lru_width": 32,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "d_ff": 48, "d_kv": 8,
    "axial_pos_shape": [2, 3], "axial_pos_embds_dim": [16, 16], "sliding_window": 4, "max_target_positions": 64,
    "max_source_positions": 64, "is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"num_hidden_layers": 4, "num_key_value_heads": 4},
    {"hidden_size": 64, "num_key_value_heads": 4, "d_model": 64, "n_embd": 64},
    {"num_key_value_heads": 4, "head_dim": 4},
    {"num_key_value_heads": 4, "num_hidden_layers": 6, "mamba_n_heads": 16, "mamba_num_heads": 16, "mamba_d_head": 4},
    {"num_heads": 16, "head_dim": 4, "mamba_d_ssm": 64, "mamba_n_heads": 8},
    {"num_hidden_layers": 5, "num_kv_shared_layers": 0, "num_key_value_heads": 2},
]
NO_DROPOUT = ("dropout", "pdrop", "drop_rate")


def configuration(kind: str, variant: dict[str, Any]) -> Any:
    """The type's configuration with every size that it has made tiny, and no dropout."""
    make = CONFIG_MAPPING[kind]
    known = make().to_dict()
    sizes = {
        name: value for name, value in (TINY | variant).items() if known.get(name) is not None or name == "head_dim"
    }
    sizes = {name: value for name, value in sizes.items() if name in known or name in make.attribute_map}
    sizes |= {n: 0.0 for n, v in known.items() if isinstance(v, float) and any(part in n for part in NO_DROPOUT)}
    layers = known.get("layer_types")
    depth = next((sizes[n] for n in ("num_hidden_layers", "n_layer", "num_layers") if n in sizes), 2)
    if isinstance(layers, list) and layers:
        kinds = list(dict.fromkeys(layers))
        sizes["layer_types"] = (kinds * depth)[:depth]
    return make(**sizes)


def build(kind: str) -> nn.Module | None:
    """The first variant that builds and runs, in float32 and evaluation mode, or None."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    for variant in VARIANTS:
        with contextlib.suppress(Exception):
            config = configuration(kind, variant)
            cls = getattr(transformers, name[0] if isinstance(name, tuple) else name)
            with torch.device("meta"):
                if sum(p.numel() for p in cls(config).parameters()) > LARGEST:
                    continue
            torch.manual_seed(0)
            model: nn.Module = cls(config).float().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            loss_of(model).sum().backward()
            return model
    return None


def loss_of(model: nn.Module) -> Tensor:
    """One loss a row: its tokens' log-probabilities, with weights."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    weights = torch.randn(ROWS, LENGTH - 1, generator=generator)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1]
    log_probs = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(log_probs * weights).sum(1)


def outcome(model: nn.Module) -> tuple[str, str]:
    """`exact`, `refused` or `wrong`, with the error or what was found."""
    model.requires_grad_(True)
    sketcher = Sketcher(model, dim=256)
    rows = []
    for problem in range(3):
        model.zero_grad()
        loss_of(model)[problem == INDEX].sum().backward()
        rows.append(sketcher.from_grads())
    want = torch.stack(rows)
    model.zero_grad()
    try:
        with sketcher.capture(INDEX) as captured:
            loss_of(model).sum().backward()
    except SketchError as error:
        return "refused", str(error)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    worst = ((captured.sketches - want).norm(dim=1) / want.norm(dim=1)).max()
    return ("exact" if worst < 1e-3 else "wrong"), f"largest error {float(worst):.1e}"


def sweep(kinds: list[str]) -> Iterator[tuple[str, str, str]]:
    """Type, outcome and what was found."""
    for kind in kinds:
        model = build(kind)
        if model is None:
            yield kind, "not built", ""
            continue
        yield kind, *outcome(model)
        del model
        gc.collect()


def table(found: dict[str, tuple[str, str]], *, rows: bool) -> Iterator[str]:
    """The lines of the report, as Markdown."""
    counts = Counter(state for state, _ in found.values())
    built = len(found) - counts["not built"]
    yield f"torch {torch.__version__}, transformers {transformers.__version__}: {built} of {len(found)} types built"
    yield ""
    yield "| outcome | types | which |"
    yield "|---|---|---|"
    for state in ("exact", "refused", "wrong", "crashed"):
        names = ", ".join(kind for kind, (its, _) in found.items() if its == state)
        yield f"| {state} | {counts[state]} | {names} |"
    if rows:
        yield from (f"{kind}: {state}: {message[:220]}" for kind, (state, message) in found.items() if message)


def main() -> None:
    """Run the sweep and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--json", type=Path, help="also write {type: [outcome, message]} to this file")
    parser.add_argument("--rows", action="store_true", help="also print what was found of each type")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    found = {}
    for kind, state, message in sweep(options.only):
        found[kind] = state, message
        print(f"\r{len(found)}/{len(options.only)} {kind:<30}", end="", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    print(file=sys.stderr)
    print("\n".join(table(found, rows=options.rows)))


if __name__ == "__main__":
    main()
