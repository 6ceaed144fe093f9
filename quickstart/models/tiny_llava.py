"""A tiny LLaVA model with random weights: real image processing, meaningless words.

For tests, and for a cluster with vision on a laptop. A few MB, created without a download, and reproducible with the
same versions of torch and transformers.
"""

import string
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SEED = 20240229
IMAGE_PIXELS = 56
PATCH_PIXELS = 14
HIDDEN = 64
HEADS = 2  # of size 32, vLLM's minimum on a CPU
LAYERS = 2
CONTEXT = 2048

IMAGE = "<image>"
ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SPECIAL = (*ROLES.values(), IMAGE)
# The vocabulary, besides single characters.
TEXT = (
    "a an the one two red green blue yellow black white small large round square cat dog bird fish tree house car road "
    "river sky sun moon star sea hill street table chair window door man woman child hand face book cup lamp and or "
    "with on under near beside above below is are stands lies looks runs flies swims bright dark old new quiet very"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_in_subprocess(folder: Path) -> None:
    """Like `make`, with torch's memory released afterwards. Does nothing if the model is there already."""
    if not (folder / "config.json").exists():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(make, folder).result()


def make(folder: Path) -> None:
    """Write the model, its tokenizer and its image processor to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    _model(tokenizer).save_pretrained(folder)
    _rename_vision_tower_weights(folder / "model.safetensors")
    _processor(tokenizer).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600


def _tokenizer() -> Any:
    """Return a word-level tokenizer that falls back to characters."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    library: Any = transformers
    # "▁" stands for the space before a word, as in Llama's vocabulary.
    characters = [*string.printable.replace(" ", ""), "▁"]
    entries = [*SPECIAL, *dict.fromkeys([*characters, *(f"▁{word}" for word in TEXT.split())])]
    vocabulary = [(entry, -1.0 if len(entry) > 1 else -10.0) for entry in entries]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return library.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **ROLES,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def _model(tokenizer: Any) -> Any:
    import torch
    import transformers

    library: Any = transformers
    vision = library.CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=HIDDEN,
    )
    text = library.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = library.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(IMAGE_PIXELS // PATCH_PIXELS) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    # The process's random generator is restored: the caller's numbers must not become predictable.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = library.LlavaForConditionalGeneration(config)
    model = model.to(torch.float32)
    model.generation_config = library.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def _rename_vision_tower_weights(weights: Path) -> None:
    """Rename the image encoder's weights as in published LLaVA models, which vLLM expects.

    transformers reads both, but writes other names since version 5.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    current, published = "vision_tower.", "vision_tower.vision_model."
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    named = {
        published + name.removeprefix(current)
        if name.startswith(current) and not name.startswith(published)
        else name: one
        for name, one in tensors.items()
    }
    save_file(named, weights, metadata=metadata)


def _processor(tokenizer: Any) -> Any:
    import transformers

    library: Any = transformers
    square = {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
    # Needs only Pillow; the fast processor needs torchvision.
    images = library.CLIPImageProcessorPil(size={"shortest_edge": IMAGE_PIXELS}, crop_size=square)
    return library.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
