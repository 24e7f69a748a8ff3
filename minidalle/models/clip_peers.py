"""Le même CLIP, aux mêmes poids, chez `open_clip` et chez `transformers`.

Leurs images se centrent comme ici, 2·x − 1 ; leurs légendes se terminent par le jeton de fin, que `closed` ajoute.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from minidalle.errors import MinidalleError
from minidalle.models.clip import CLIP

# Chaque morceau de nom d'ici, et le leur ; dans l'ordre où les remplacer.
_OPEN_CLIP = {
    "image_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    "image.patches": "visual.conv1",
    "image.class_token": "visual.class_embedding",
    "image.positions": "visual.positional_embedding",
    "image.norm": "visual.ln_pre",
    "image.encoder.norm": "visual.ln_post",
    "image.encoder.blocks": "visual.transformer.resblocks",
    "text.embedding.tokens": "token_embedding",
    "text.embedding.positions.weight": "positional_embedding",
    "text.decoder.norm": "ln_final",
    "text.decoder.blocks": "transformer.resblocks",
    "attention_norm": "ln_1",
    "attention.queries_keys_values.": "attn.in_proj_",
    "attention.output": "attn.out_proj",
    "dense_norm": "ln_2",
    "dense.0": "mlp.c_fc",
    "dense.2": "mlp.c_proj",
}
_TRANSFORMERS = {
    "image_projection": "visual_projection",
    "image.patches": "vision_model.embeddings.patch_embedding",
    "image.class_token": "vision_model.embeddings.class_embedding",
    "image.positions": "vision_model.embeddings.position_embedding.weight",
    "image.norm": "vision_model.pre_layrnorm",  # la faute est d'origine
    "image.encoder.norm": "vision_model.post_layernorm",
    "image.encoder.blocks": "vision_model.encoder.layers",
    "text.embedding.tokens": "text_model.embeddings.token_embedding",
    "text.embedding.positions": "text_model.embeddings.position_embedding",
    "text.decoder.norm": "text_model.final_layer_norm",
    "text.decoder.blocks": "text_model.encoder.layers",
    "attention_norm": "layer_norm1",
    "attention.output": "self_attn.out_proj",
    "dense_norm": "layer_norm2",
    "dense.0": "mlp.fc1",
    "dense.2": "mlp.fc2",
}


def to_open_clip(clip: CLIP) -> nn.Module:
    """`open_clip.CLIP` de mêmes poids.

    Raises:
        MinidalleError: ce CLIP n'a pas de Transformer pour lire les images.
    """
    import open_clip

    config = _with_vit(clip)
    heads = config.image_width // config.image_heads
    image = {"layers": config.image_layers, "width": config.image_width, "head_width": heads}
    text = {"layers": config.text_layers, "width": config.text_width, "heads": config.text_heads}
    peer = open_clip.CLIP(
        config.dim,
        open_clip.CLIPVisionCfg(**image, patch_size=config.patch, image_size=config.size),
        open_clip.CLIPTextCfg(**text, vocab_size=config.vocabulary + 1, context_length=config.length + 1),
        quick_gelu=config.activation == "quick_gelu",
    )
    # Ses projections multiplient par la droite : leurs matrices sont transposées.
    turned = ("visual.proj", "text_projection")
    peer.load_state_dict({k: t.T if k in turned else t for k, t in _renamed(clip, _OPEN_CLIP)})
    return peer.eval()


def to_transformers(clip: CLIP) -> nn.Module:
    """`transformers.CLIPModel` de mêmes poids.

    Raises:
        MinidalleError: ce CLIP n'a pas de Transformer pour lire les images.
    """
    import transformers

    config = _with_vit(clip)
    both = {"hidden_act": config.activation, "projection_dim": config.dim}
    end = {"eos_token_id": config.vocabulary, "bos_token_id": None, "pad_token_id": 0}
    vision = both | _sizes(config.image_width, config.image_layers, config.image_heads)
    text = both | _sizes(config.text_width, config.text_layers, config.text_heads) | end
    peer = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=vision | {"patch_size": config.patch, "image_size": config.size},
            text_config=text
            | {"vocab_size": config.vocabulary + 1, "max_position_embeddings": config.length + 1},
            projection_dim=config.dim,
        )
    )
    state = {}
    for key, tensor in _renamed(clip, _TRANSFORMERS):
        before, joint, after = key.partition("attention.queries_keys_values")
        for part, matrix in zip("qkv", tensor.chunk(3), strict=True) if joint else [("", tensor)]:
            state[f"{before}self_attn.{part}_proj{after}" if joint else key] = matrix
    peer.load_state_dict(state)
    return peer.eval()


def _renamed(clip: CLIP, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in clip.state_dict().items():
        for mine, theirs in names.items():
            key = key.replace(mine, theirs)
        yield key, tensor


def _sizes(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _with_vit(clip: CLIP):
    if clip.config.tower != "vit":
        raise MinidalleError(
            "Seul un CLIP dont la tour est « vit » existe aussi chez open_clip et transformers."
        )
    return clip.config
