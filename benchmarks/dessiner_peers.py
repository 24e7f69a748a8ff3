"""DALL·E et DALL·E mini chez les pairs, à nos poids ou à nos tailles.

`dalle-pytorch` ne s'installe plus tel quel : on l'importe avec des souches à la place de ce qu'il demande sans que
son transformeur s'en serve. `min-dalle` coupe le gradient et change le nombre de fils dès qu'on l'importe : on
remet les deux.
"""

import importlib
import sys
from collections.abc import Callable
from types import MethodType, ModuleType

import torch
from torch import Tensor, nn

from minidalle.hub import dalle_mini_parts
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.dalle_mini import DALLEMini, DALLEMiniConfig

FIRST = 1  # le premier mot de toutes les légendes, à la place du départ de dalle-pytorch

# --- dalle-pytorch --------------------------------------------------------------------------------

_STUBS = {
    "taming.models.vqgan": ("VQModel", "GumbelVQ"),
    "omegaconf": ("OmegaConf",),
    "pkg_resources": ("get_distribution",),
}


def import_dalle_pytorch() -> ModuleType:
    """Le module `dalle_pytorch` ; aucune des souches ne reste après l'import.

    Raises:
        ImportError: lui, ou un paquet dont il se sert vraiment, n'est pas installé.
    """
    if "dalle_pytorch" in sys.modules:
        return sys.modules["dalle_pytorch"]
    before = {name: sys.modules.get(name) for name in _STUBS}
    for name, contents in _STUBS.items():
        sys.modules[name] = stub = ModuleType(name)
        for content in contents:
            setattr(stub, content, type(content, (), {}))
    try:
        return importlib.import_module("dalle_pytorch")
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def dalle_pytorch(config: DALLEConfig, **options: object) -> nn.Module:
    """Le `DALLE` de dalle-pytorch aux tailles de `config`, images en jetons seulement ; `options` : les siennes."""
    package = import_dalle_pytorch()
    side = config.grid[0]
    # Son dVAE n'est là que pour dire les tailles : les jetons vont et viennent tels quels.
    vae = package.DiscreteVAE(8 * side, config.image_vocabulary, codebook_dim=1, num_layers=3, hidden_dim=1)
    vae.decode = lambda tokens: tokens
    peer = package.DALLE(
        dim=config.width,
        vae=vae,
        num_text_tokens=config.text_vocabulary + 1,  # le dernier : notre départ
        text_seq_len=config.text_length,
        depth=config.layers,
        heads=config.heads,
        dim_head=config.width // config.heads,
        **options,
    )
    peer.forward_with_cond_scale = MethodType(_with_cache, peer)
    return peer


def _with_cache(self: nn.Module, *args: Tensor, cond_scale: float = 1.0, cache: dict | None = None) -> Tensor:
    """Sa méthode du même nom oublie le cache quand rien ne guide : il relirait tout à chaque jeton."""
    if cond_scale != 1:
        raise NotImplementedError("Son guidage efface la légende : passer par PeerWriter.")
    return self(*args, cache=cache)


def twins(config: DALLEConfig, scale: float = 1.0) -> tuple[DALLE, nn.Module]:
    """Notre DALL·E et celui de dalle-pytorch, aux mêmes poids, tirés au hasard.

    Par ses options, son modèle perd la rotation des positions et le décalage des jetons. Par ses poids, ses échelles
    de couche valent 1, la moitié ouverte de ses portes vaut 1, sa tête n'a pas de constante. Nous prenons ses
    positions d'image (à notre place suivante), et n'avons pas de constante aux requêtes, clés et valeurs. Il lit
    un jeton de départ avant la légende, nous après : le sien sert de premier mot, toujours `FIRST`, et son dernier
    mot, de départ (voir `peer_text`).

    Args:
        config: à positions « 1d ».
        scale: facteur des matrices des blocs, pour qu'une suite ne répète pas toujours le même jeton.
    """
    ours = DALLE(config).eval()
    peer = dalle_pytorch(config, rotary_emb=False, shift_tokens=False).eval()
    with torch.no_grad():
        for block in ours.decoder.blocks:
            for matrix in (p for p in block.parameters() if p.ndim == 2):
                matrix.mul_(scale)
            block.attention.queries_keys_values.bias.zero_()
        for table in peer.image_pos_emb.weights:
            table.mul_(0.02 * scale)
        cells = peer.image_pos_emb(torch.empty(1, config.image_length - 1, config.width))
        ours.image_position.weight[1:] = cells[0]
    _copy(ours, peer)
    return ours, peer


@torch.no_grad()
def _copy(ours: DALLE, peer: nn.Module) -> None:
    config, words = ours.config, ours.config.text_vocabulary
    peer.text_emb.weight.zero_()
    peer.text_emb.weight[:words] = ours.text_embedding.weight
    peer.text_emb.weight[0] = ours.text_embedding.weight[FIRST]
    peer.text_emb.weight[words] = ours.image_embedding.weight[-1] + ours.image_position.weight[0]
    # À ses jetons de remplissage s'ajoute une position ; pas aux nôtres.
    padding = ours.padding.weight[1:] - ours.text_position.weight[1:]
    peer.text_emb.weight[words + 1 : words + config.text_length] = padding
    peer.text_pos_emb.weight.zero_()
    peer.text_pos_emb.weight[:-1] = ours.text_position.weight
    peer.image_emb.weight.copy_(ours.image_embedding.weight[:-1])
    for block, (attention, dense) in zip(ours.decoder.blocks, peer.transformer.layers.layers, strict=True):
        for layer, norm in ((attention, block.attention_norm), (dense, block.dense_norm)):
            layer.scale.fill_(1)
            layer.fn.norm.load_state_dict(norm.state_dict())
        attend, gated = attention.fn.fn.fn, dense.fn.fn.net
        attend.to_qkv.weight.copy_(block.attention.queries_keys_values.weight)
        attend.to_out[0].load_state_dict(block.attention.output.state_dict())
        first = block.dense[0]
        gated[0].weight.copy_(torch.cat([torch.zeros_like(first.weight), first.weight]))
        gated[0].bias.copy_(torch.cat([torch.ones_like(first.bias), first.bias]))
        gated[3].load_state_dict(block.dense[2].state_dict())
    norm, head = peer.to_logits
    norm.load_state_dict(ours.decoder.norm.state_dict())
    head.weight.zero_()
    head.bias.zero_()
    if ours.text_head is not None:
        head.weight[:words] = ours.text_head.weight
    head.weight[peer.num_text_tokens :] = ours.head.weight


@torch.no_grad()
def without_gates(peer: nn.Module) -> nn.Module:
    """Ôte à un jumeau la moitié de ses portes qui vaut toujours 1 : mêmes valeurs, un tiers du dense en moins."""
    for _, dense in peer.transformer.layers.layers:
        gated = dense.fn.fn
        first = nn.Linear(gated.net[0].in_features, gated.net[0].out_features // 2)
        first.weight.copy_(gated.net[0].weight.chunk(2)[1])
        first.bias.copy_(gated.net[0].bias.chunk(2)[1])
        gated.net = nn.Sequential(first, nn.GELU(), gated.net[3])
    return peer


def peer_text(config: DALLEConfig, text: Tensor) -> Tensor:
    """Nos légendes (B, T), qui commencent toutes par `FIRST`, comme un jumeau les lit."""
    return torch.cat([text[:, 1:], torch.full_like(text[:, :1], config.text_vocabulary)], 1)


class PeerWriter(nn.Module):
    """dalle-pytorch tel que l'attendent `minidalle.training.train` et `minidalle.sampling.sample`.

    L'écriture se sert de son cache ; le guidage est celui de `sample`, le sien effaçant la légende.
    """

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer

    def loss(self, text: Tensor, image: Tensor) -> dict[str, Tensor]:
        """La sienne : un huitième pour le texte, sept pour l'image."""
        return {"loss": self.peer(text, image.flatten(1), return_loss=True)}

    def start(self, text: Tensor) -> dict:
        return {"text": text, "image": text[:, :0], "cache": {}}

    def step(self, previous: Tensor | None, state: dict) -> Tensor:
        if previous is not None:
            state["image"] = torch.cat([state["image"], previous[:, None]], 1)
        logits = self.peer(state["text"], state["image"], cache=state["cache"])
        return logits[:, -1, self.peer.num_text_tokens :]


# --- transformers ---------------------------------------------------------------------------------

_GPT2 = {
    "attention_norm": "ln_1",
    "attention.queries_keys_values": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "dense_norm": "ln_2",
    "dense.0": "mlp.c_fc",
    "dense.2": "mlp.c_proj",
}


@torch.no_grad()
def gpt2(ours: DALLE) -> nn.Module:
    """GPT-2 de transformers, aux poids de `ours`, qui lit notre suite texte + image (voir `gpt2_stream`)."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    config = ours.config
    places = ours.image_position
    places = places.weight if isinstance(places, nn.Embedding) else places()
    # Les jetons d'image et le départ, puis les mots, puis les remplissages, à qui la position est ôtée d'avance.
    padding = ours.padding.weight - ours.text_position.weight
    table = torch.cat([ours.image_embedding.weight, ours.text_embedding.weight, padding])
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(table),
            n_positions=config.text_length + config.image_length,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            activation_function="gelu",
            tie_word_embeddings=False,
            **dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0),
            **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"]),
        )
    )
    state = {"wte.weight": table, "wpe.weight": torch.cat([ours.text_position.weight, places])}
    for key, tensor in ours.decoder.state_dict().items():
        key = key.replace("blocks", "h")
        for mine, theirs in _GPT2.items():
            key = key.replace(mine, theirs)
        # Ses couches denses multiplient par la droite : leurs matrices sont transposées.
        tensor = tensor.T if ".c_" in key and key.endswith("weight") else tensor
        state[key.replace("norm.", "ln_f.") if key.startswith("norm") else key] = tensor
    peer.transformer.load_state_dict(state)
    # Sa tête ne note que les jetons d'image, comme la nôtre : c'est moins de travail pour lui.
    peer.lm_head = nn.Linear(config.width, config.image_vocabulary, bias=False)
    peer.lm_head.weight.copy_(ours.head.weight)
    return peer.eval()


def gpt2_stream(config: DALLEConfig, text: Tensor, image: Tensor | None = None) -> Tensor:
    """Légendes (B, T) et jetons d'image → ce que `gpt2` lit : la légende, le départ, l'image sans son dernier."""
    codes, words = config.image_vocabulary, config.text_vocabulary
    padding = codes + 1 + words + torch.arange(config.text_length)
    start = torch.full_like(text[:, :1], codes)
    parts = [torch.where(text == 0, padding, codes + 1 + text), start]
    return torch.cat(parts if image is None else [*parts, image.flatten(1)[:, :-1]], 1)


def bart(config: DALLEMiniConfig) -> nn.Module:
    """BART de transformers, de poids quelconques : mêmes tailles, et un sous-réseau dense d'autant de nombres."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=max(config.text_vocabulary, config.image_vocabulary + 1),
            max_position_embeddings=max(config.text_length, config.image_length),
            d_model=config.width,
            encoder_layers=config.layers,
            decoder_layers=config.decoder_layers,
            **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], config.heads),
            # Trois matrices chez nous, deux chez lui.
            **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 3 * config.glu_width // 2),
            **dict.fromkeys(["dropout", "attention_dropout", "activation_dropout"], 0.0),
            **dict.fromkeys(["bos_token_id", "eos_token_id", "forced_eos_token_id"]),
            pad_token_id=config.pad,
            decoder_start_token_id=config.start,
        )
    )


# --- min-dalle ------------------------------------------------------------------------------------


def import_min_dalle() -> ModuleType:
    """Le module `min_dalle.models`, gradient et nombre de fils remis.

    Raises:
        ImportError: il n'est pas installé.
    """
    threads, gradient = torch.get_num_threads(), torch.is_grad_enabled()
    try:
        return importlib.import_module("min_dalle.models")
    finally:
        torch.set_grad_enabled(gradient)
        torch.set_num_threads(threads)


def mini_twins(config: DALLEMiniConfig, scale: float = 1.0) -> tuple[DALLEMini, Callable]:
    """Notre DALL·E mini et l'écriture guidée de min-dalle, `write(text, null, count, length, guidance)`, mêmes poids.

    Args:
        config: grille de 16 × 16 et remplissage 1, que son code suppose.
        scale: facteur des matrices.
    """
    package = import_min_dalle()
    sizes = {
        "embed_count": config.width,
        "attention_head_count": config.heads,
        "glu_embed_count": config.glu_width,
        "device": "cpu",
    }
    encoder = package.DalleBartEncoder(
        layer_count=config.layers,
        text_vocab_count=config.text_vocabulary,
        text_token_count=config.text_length,
        **sizes,
    )
    decoder = package.DalleBartDecoder(
        layer_count=config.decoder_layers, image_vocab_count=config.image_vocabulary, **sizes
    )
    with torch.no_grad():
        for matrix in (m for part in (encoder, decoder) for m in part.parameters() if m.ndim == 2):
            matrix.normal_(std=0.02 * scale)
    ours = DALLEMini(config).eval()
    neutral = ("ln0.weight", "ln1.weight", "final_ln.weight", "pre_self_attn_layer_norm.weight")
    neutral += ("pre_encoder_attn_layer_norm.weight",)
    states = [
        {key: tensor for key, tensor in part.state_dict().items() if not key.endswith(neutral)}
        for part in (encoder, decoder)
    ]
    parts = dalle_mini_parts(config, *states, None)
    ours.load_state_dict({key: torch.cat(tensors) for key, tensors in parts.items()})
    # La ligne du départ, qu'il pourrait écrire : ôtée, il a la même tête que nous.
    decoder.lm_head.weight = nn.Parameter(decoder.lm_head.weight[: config.image_vocabulary].detach())

    @torch.inference_mode()
    def write(text: Tensor, null: Tensor, count: int, length: int, guidance: float) -> Tensor:
        """La boucle de son `MinDalle`, qui télécharge : le plus probable des jetons, `count` images d'une légende."""
        rows = [0] * count + [1] * count
        both = torch.cat([null, text])
        memory, mask = encoder(both)[rows], (both != 1)[rows][:, None, None, :]
        cache = torch.zeros(config.decoder_layers, 4 * count, 256, config.width)
        tokens = torch.full((count, length + 1), config.start)
        settings, places = torch.tensor([1.0, 1.0, guidance]), torch.arange(length)
        for i in range(length):
            tokens[:, i + 1], cache = decoder.sample_tokens(
                settings=settings,
                attention_mask=mask,
                encoder_state=memory,
                attention_state=cache,
                prev_tokens=tokens[:, [i]],
                token_index=places[[i]],
            )
        return tokens[:, 1:]

    return ours, write
