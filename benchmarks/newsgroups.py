"""20 Newsgroups on frozen MiniLM: 16 groups to tell apart, the other four to detect (near), and Reuters (far).

    python benchmarks/newsgroups.py                                   # everything, from data/newsgroups of `make data`
    python benchmarks/newsgroups.py --seeds 0 --rows deterministic sngp
    python benchmarks/newsgroups.py --phases choose                   # or measure; see _real_data.py
    python benchmarks/newsgroups.py --table                           # as Markdown for docs/figures.md

Writes benchmarks/results/newsgroups.json, after each row and seed; what a kill leaves undone a second call does. The
embeddings are of the first 256 tokens and kept in data/embeddings. Networks, rows and settings are those of
clinc150.py, chosen there. Of the training posts, stratified, 10 % are `tune` and 10 % `defer`. The groups held out were
written down before any result. The choosing phase reads the split `train` alone: posts of the four groups, the test
posts and Reuters are in files, or in embeddings, that it never opens.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from _real_data import Known, Study, choose, measure, read
from _sentences import HELD_OUT_GROUPS, embeddings, newsgroups_texts
from _tables import tables
from clinc150 import EPOCHS, build_frozen, frozen_rows, frozen_study, unseen_embeddings
from torch import Tensor

from hesitant.data import split

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "newsgroups.json"
TITLES = {"newsgroups": "20 Newsgroups, frozen MiniLM", "near": "four other groups", "far": "Reuters"}
NUM_CLASSES = 16


def newsgroups_study(work: Path, epochs: int) -> Study:
    """Answers the study: that of CLINC150's frozen embeddings, with other classes."""
    study = frozen_study(work, epochs)
    settings = {**study.settings, "held_out": HELD_OUT_GROUPS, "validation": "a fifth of train, halved"}
    return replace(study, name="newsgroups", build=partial(build_frozen, NUM_CLASSES), settings=settings)


def main() -> None:
    """Chooses and measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", nargs="+", choices=["choose", "measure"], default=["choose", "measure"])
    parser.add_argument("--rows", nargs="+", choices=list(frozen_rows()), default=list(frozen_rows()))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=EPOCHS["frozen"])
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "newsgroups", help="of `make data`")
    parser.add_argument("--embeddings", type=Path, default=ROOT / "data" / "embeddings", help="made where they lack")
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "work" / "newsgroups", help="remove to start anew")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured, measure nothing")
    arguments = parser.parse_args()

    def split_of(name: str) -> tuple[Tensor, Tensor]:
        kept = arguments.embeddings / f"newsgroups-{name}.npz"
        return embeddings(kept, lambda: newsgroups_texts(arguments.folder, name))

    study = newsgroups_study(arguments.work, arguments.epochs)
    phases = [] if arguments.table else arguments.phases
    known = Known(*split(split_of("train"), [0.8, 0.1, 0.1])) if phases else None
    if known is not None and "choose" in phases:
        for seed in arguments.seeds:
            choose(study, known, seed, arguments.rows)
    if known is not None and "measure" in phases:
        unseen = unseen_embeddings(split_of, {"near": "near", "far": "far"})
        for seed in arguments.seeds:
            measure(study, known, unseen, seed, arguments.rows, "cpu", arguments.out)
    print(tables(read(arguments.out), TITLES))


if __name__ == "__main__":
    main()
