"""A vision-language model in TRL, aligned by forward passes: a tiny Llava, with a processor made on the spot."""

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, Qwen2Config
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from trl import GRPOConfig
from trlkit import SMALL, Witness, apart, graded

from gradalign import GradAlignError
from gradalign_trainer.adapters.trl import GradAlignConfig, GradAlignGRPOTrainer
from gradalign_trainer.worlds.tinymodel import byte_tokenizer

pytestmark = [
    # What TRL, transformers and accelerate warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]
TEMPLATE = """{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}
{%- if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"""
SIDE, PATCH = 16, 8


def model_and_processor():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, image_size=SIDE, patch_size=PATCH, projection_dim=16, **sizes),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, num_key_value_heads=2, eos_token_id=1, **sizes
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config), processor


def rows(part, count, blue):
    problems = [
        {"problem_id": f"{part}-{i}", "prompt": [{"role": "user", "content": f"{i}?"}], "answer": str(i), "part": part,
         "image": Image.new("RGB", (SIDE, SIDE), (20 * i, 50, blue))}
        for i in range(count)
    ]  # fmt: skip
    return Dataset.from_list(problems).cast_column("image", ImageColumn())


def reward(completions, answer, part, **_):
    return graded([said[0]["content"] for said in completions], answer, part)


@pytest.fixture
def play(scorer, run_id, tmp_path):
    """Makes a trainer of the tiny Llava: `play(kind, alignment, **settings of GRPOConfig)`."""

    def make(kind, alignment, **settings):
        model, processor = model_and_processor()
        return kind(
            model=model,
            processing_class=processor,
            args=GRPOConfig(output_dir=str(tmp_path), **{**SMALL, "max_steps": 2, **settings}),
            train_dataset=rows("pool", 8, 10),
            reward_funcs=reward,
            gradalign=GradAlignConfig(
                scorer_url=scorer.url,
                run_id=run_id,
                validation_dataset=rows("validation", 5, 90),
                alignment=alignment,
                timeout=120.0,
            ),
        )

    return make


@pytest.mark.parametrize("settings", [{}, {"steps_per_generation": 2, "per_device_train_batch_size": 8}])
def test_products_of_rollouts_with_images_are_those_of_the_loss(play, settings):
    trainer = play(Witness, "auto", **settings)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "gradalign/weight" in entry]
    assert entries
    assert entries[-1]["gradalign/fallbacks"] == 0
    assert apart(trainer.compared) < 0.02


def test_sketches_of_images_are_refused(play):
    with pytest.raises(GradAlignError, match='sketches are taken of text only: take alignment="forward"'):
        play(GradAlignGRPOTrainer, "capture")
