"""Typer en français, qu'il ne sait ni pour l'aide ni pour les fautes de frappe ; ce que les commandes partagent."""

import difflib
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from minidalle.errors import MinidalleError, reason

if TYPE_CHECKING:
    from tqdm import tqdm

INTERRUPTED = 130  # code de sortie d'un programme arrêté par Ctrl-C


def _sentence(error: Exception) -> str:
    """La phrase à montrer pour une erreur que l'utilisateur peut corriger."""
    if isinstance(error, MinidalleError):
        return str(error)
    if isinstance(error, OSError):
        where = f" sur « {error.filename} »" if error.filename else ""
        return (
            f"Le système a refusé une opération{where} ({reason(error)}) : vérifier le chemin et ses droits."
        )
    # Reste une faute de frappe vue par Typer, reconnue à sa classe : son message est en anglais.
    command, name = error.ctx.command, getattr(error, "option_name", None)
    options = {text: p for p in command.get_params(error.ctx) for text in p.opts if text.startswith("-")}
    help_hint = f"voir « {error.ctx.command_path} --help »"
    match type(error).__name__:
        case "NoSuchOption":
            close = difflib.get_close_matches(name, options, n=1)
            return f"Option inconnue : « {name} » ; {f'essayer « {close[0]} »' if close else help_hint}."
        case "BadOptionUsage" if getattr(options.get(name), "is_flag", False):
            return f"L'option « {name} » ne prend pas de valeur : {help_hint}."
        case "BadOptionUsage":
            return f"Il manque une valeur après l'option « {name} » : {help_hint}."
        case "MissingParameter":
            return f"Il manque {label(error.param)} : {help_hint}."
        case "BadParameter":
            return f"Valeur impossible pour {label(error.param)} : {help_hint}."
    return f"Trop d'arguments : mettre un texte de plusieurs mots entre guillemets, ou {help_hint}."


def label(param: Any) -> str:
    """« -n ENTIER », « DESCRIPTION »."""
    names = [] if param.param_type_name == "argument" else [" / ".join(param.opts)]
    return f"« {' '.join([*names, param.metavar])} »"


def number(value: float) -> str:
    """« 1 234 », « 27,31 »."""
    text = f"{value:,}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
    return text.replace(",", "\u202f").replace(".", ",")


def quoted(words: list[str]) -> str:
    """« a », « b » et encore 3."""
    more = f" et encore {number(len(words) - 10)}" if len(words) > 10 else ""
    return ", ".join(f"« {word} »" for word in words[:10]) + more


def natural(param: typer.CallbackParam, value: int | None) -> int | None:
    """Contrôle d'une option entière et positive : une graine, un port."""
    if value is not None and not 0 <= value < 2**62:
        raise MinidalleError(f"{label(param)} veut un entier de 0 à {2**62 - 1}, pas {value}.")
    return value


def progress_bar(what: str, total: int) -> "tqdm":
    """Barre d'avancement sur la sortie d'erreur ; cachée hors d'un terminal."""
    from tqdm import tqdm

    return tqdm(
        desc=what,
        total=total,
        disable=bool(os.environ.get("TQDM_DISABLE")) or None,  # None : selon le terminal
        bar_format="{desc} {percentage:3.0f} %|{bar}| {n_fmt} sur {total_fmt}, encore {remaining}",
    )


BAD_IMAGES_HELP = (
    "Images absentes ou illisibles : « fail », s'arrêter à la première ; « list », les énumérer toutes et "
    "s'arrêter ; « skip », les énumérer et s'en passer."
)


def tell_skipped(lines: list[str]) -> None:
    """Énumère les images que « skip » a écartées."""
    for line in lines:
        typer.echo(f"Image écartée : {line}", err=True)


class _French:
    """Écrit l'aide en français : Typer ne la connaît qu'en anglais."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            error.ctx = error.ctx or ctx  # que Typer oublie parfois de joindre
            raise

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        params = self.get_params(ctx)
        arguments = [p for p in params if p.param_type_name == "argument"]
        options = [p for p in params if p.param_type_name == "option"]
        commands = getattr(self, "commands", {})
        usage = [p.metavar if p.required else f"[{p.metavar}]" for p in arguments]
        usage += ["COMMANDE …"] if commands else []
        formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *usage]), "Usage : ")
        formatter.write_paragraph()
        formatter.write_text(inspect.cleandoc(self.help))
        sections = {
            "Arguments": [(p.metavar, _describe(p)) for p in arguments],
            "Options": [(_spelling(p), _describe(p)) for p in options],
            "Commandes": [(name, c.help.partition("\n")[0]) for name, c in commands.items()],
        }
        for title, rows in sections.items():
            if rows:
                formatter.write(f"\n{title}\n")
                with formatter.indentation():
                    formatter.write_dl(rows)
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


def _spelling(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} {option.metavar}"


def _describe(param: Any) -> str:
    if param.name == "help":
        return "Afficher ce message et quitter."
    default = param.show_default if isinstance(param.show_default, str) else param.default
    notes = ["[obligatoire]"] if param.required else []
    notes += [f"[défaut : {default}]"] if default is not None and default is not False else []
    return " ".join([param.help, *notes])


class Command(_French, TyperCommand):
    pass


class Group(_French, TyperGroup):
    """Groupe de commandes qui rend compte d'une erreur en une phrase, sans trace d'appels."""

    def main(self, *args: Any, **extra: Any) -> None:
        """Exécute et quitte : 0, 2 si l'utilisateur doit corriger quelque chose, 130 après Ctrl-C."""
        try:
            status = super().main(*args, **extra | {"standalone_mode": False})
        except (MinidalleError, OSError, typer.TyperException) as error:
            sentence = _sentence(error)
            typer.echo(f"Erreur : {sentence[0].upper()}{sentence[1:]}", err=True)
            status = 2
        sys.exit(status or 0)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:
        if args[0] not in self.commands:
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"essayer « {close[0]} »" if close else f"choisir parmi {', '.join(self.commands)}"
            raise MinidalleError(f"Commande inconnue : « {args[0]} » ; {hint}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Interrompu : aucun fichier n'est resté à moitié écrit.", err=True)
            raise typer.Exit(INTERRUPTED) from None


# Réglages d'une application ou d'un groupe de commandes.
PLAIN = {
    "cls": Group,
    "rich_markup_mode": None,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
