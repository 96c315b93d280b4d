"""What hands that know other tools type, and what it is called here.

An unknown option is first looked up by meaning, then by its letters.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

__all__ = ["advice"]

_LAUNCHER = (
    "accelerate launch or torchrun starts the command once a GPU, as docs/many-gpus.md shows"
)
_ENDING = "the ending of the file's name says it, as in --out faces.webp"
_PUBLIC = "--host 0.0.0.0 lets other machines open the page"

# Ours, first what fits best; "a+b" is said together. A command is offered only what it has.
_HABITS = {
    "--dataset|--generator+--preset|--run|FOLDER": "model model-id model-name net network "
    "network-pkl pkl checkpoint ckpt pretrained pretrained-model-name-or-path",
    "--data|--dataset": "dataset dataset-name data-dir data-path data-root train-data-dir "
    "train-dir images-dir source",
    "--num-images|--seeds": "n samples num num-samples n-samples num-images-per-prompt count "
    "num-outputs",
    "--seeds|--seed": "random-seed generator global-seed",
    "--class|--column": "class-idx class-label label category",
    "--labels|--class+--attr|--attributes|--column": "cond conditional class-cond label-columns",
    "--attr|--attributes": "prompt attribute attributes condition symbol symbols",
    "--guidance": "cfg cfg-scale guidance-scale",
    "--sampler": "scheduler solver",
    "--steps|--max-steps|--scale|--num-images": "steps num-steps num-inference-steps nfe "
    "inference-steps sampling-steps iterations iters n-iter frames",
    "--max-steps+--time-budget|--steps|--scale": "epochs num-epochs num-train-epochs max-epochs "
    "max-train-steps train-steps total-steps max-iter kimg nimg total-kimg duration",
    "--time-budget|--max-steps": "time hours max-time time-limit",
    "--learning-rate": "lr base-lr max-lr",
    "--set": "weight-decay wd betas ema ema-decay warmup lr-warmup-steps lr-scheduler dropout",
    "--accumulate": "grad-accum gradient-accumulation-steps accumulate-grad-batches",
    "--activation-checkpointing": "gradient-checkpointing grad-checkpointing",
    "--checkpoint-every": "snap snapshot-every save-every save-steps checkpointing-steps "
    "save-interval",
    "--log-every": "tick logging-steps log-interval print-freq",
    "--validation|--split": "val val-split val-size test-size test-split holdout held-out",
    "--resume": "resume-from resume-from-checkpoint continue restart",
    "--init": "finetune fine-tune init-from transfer",
    "--preset": "config cfg-file config-file arch architecture recipe",
    "--temperature": "truncation truncation-psi psi temp noise-scale",
    "--resolution|--size|--preset": "res resolution size image-size img-size height width",
    "--device": "gpu cuda cpu use-cuda accelerator",
    "--dtype": "fp16 fp32 half bf16 amp precision mixed-precision",
    "--batch|--batch-size": "batch batch-size bs max-batch batch-gpu train-batch-size "
    "per-device-train-batch-size",
    "--out|--outdir|--json": "output outfile output-file out-file out save save-to dest",
    "--outdir|--out": "outdir output-dir out-dir save-dir logdir log-dir run-dir folder",
    "--columns": "cols nrow ncol",
    "--scale": "zoom enlarge upscale",
    "--overwrite": "f force yes",
    "--offline": "local-files-only no-download",
    "--gaussian-prior": "no-ebm no-prior gaussian",
    "--parts": "metrics metric",
    "--ood": "outliers out-of-distribution",
    "--licence": "license",
    "--repo-id": "repo repository hub-model-id",
    "--token": "hf-token hub-token use-auth-token",
    "--dry-run": "dry estimate plan",
    "--quiet": "q silent no-progress disable-progress-bar",
    "--list|--list-presets": "ls list-models models presets",
    _LAUNCHER: "gpus num-gpus n-gpus ngpus nproc nproc-per-node num-processes world-size ranks",
    _ENDING: "format ext extension file-format image-format",
    _PUBLIC: "share public listen",
}
_MEANT = {other: ours for ours, others in _HABITS.items() for other in others.split()}
# Commands that a piece of advice is of no use to lack the option it speaks of.
_NEEDS = {
    _LAUNCHER: ("--trajectory", "--max-steps", "--dry-run"),  # what can be shared out
    _ENDING: ("--out",),
    _PUBLIC: ("--host",),
}
_NO_ANSWERS = ("help", "version")  # to an option that was meant to do something


def advice(typed: str, known: Sequence[str]) -> str:
    """What to say of an option that a command does not have; empty where nothing comes to mind.

    Arguments:
        typed: As it was typed, with its dashes.
        known: The command's options, long and short, and its arguments by their metavars.

    >>> advice("--lr", ["--learning-rate", "--log-every"])
    "Did you mean '--learning-rate'?"
    """
    word = typed.split("=")[0].lstrip("-").replace("_", "-").lower()
    meant = _MEANT.get(word, "")
    if meant in _NEEDS:
        useful = any(name in known for name in _NEEDS[meant])
        return f"Instead: {meant}." if useful else _by_letters(word, known)
    for together in meant.split("|"):
        if found := [name for name in together.split("+") if name in known]:
            return _question(found)
    return _by_letters(word, known)


def _by_letters(word: str, known: Iterable[str]) -> str:
    """The known options that are spelt alike."""
    bare = {name.lstrip("-"): name for name in known if name.startswith("--")}
    names = [name for name in bare if name not in _NO_ANSWERS]
    longer = [name for name in names if len(word) > 2 and re.match(re.escape(word), name)]
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.7)
    return _question([bare[name] for name in dict.fromkeys([*close, *longer])][:2])


def _question(names: Sequence[str]) -> str:
    return f"Did you mean {' or '.join(map(repr, names))}?" if names else ""
