"""VQA accuracy: the official rule, its variant, and every file it is asked for in."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excitor_mm.data.index import ShardIndex, write_index, write_shard
from excitor_mm.data.samples import Question, Sample
from excitor_mm.errors import DataError
from excitor_mm.evaluate.vqa import evaluate_answers, format_accuracy, read_answered
from excitor_mm.metrics.vqa import CONTRACTIONS, RULES, Answered, accuracy, normalize, score_answers
from tests.conftest import jpeg, make_shards


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_closed_form_of_ten_people(matches: int, expected: float) -> None:
    people = ["red"] * matches + [f"x{i}" for i in range(10 - matches)]
    assert accuracy("red", people) == pytest.approx(expected)


def test_unanimous_people_are_not_normalised_officially() -> None:
    for answer in ("Yes", "yes.", "yes!"):
        assert accuracy(answer, ["yes"] * 10, "official") == 0
        assert accuracy(answer, ["yes"] * 10, "normalized") == 1
        assert accuracy(answer, ["yes"] * 9 + ["no"], "official") == 1
    for rule in RULES:  # some forks normalise the answer alone, and then unanimous people never said "a dog"
        assert accuracy("a dog", ["a dog"] * 10, rule) == 1
    assert accuracy("yes\n", ["yes"] * 10, "official") == 1  # white space at the ends is always stripped


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog", "dog"),
        ("an apple and a pear", "apple and pear"),
        ("none", "0"),
        ("Ten men", "10 men"),
        ("1,000", "1000"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("black-and-white", "black and white"),
        ("black - white", "black white"),
        ("3.5 m.", "3.5 m"),
        ("dont know", "don't know"),
        ("hed've", "he'd've"),
        ("he'dve", "he'd've"),
        ("somebody'd", "somebodyd"),
        ("what?", "what"),
        ("." * 33, "."),
        (" a\tb\nc ", "b c"),
    ],
)
def test_normalisation(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


@given(st.text(alphabet="abc d.,'!?-()019ATne\t\n", max_size=30))
def test_normalised_answers_have_no_case_punctuation_articles_or_number_words(answer: str) -> None:
    words = normalize(answer).split()
    assert not {"a", "an", "the", "none", "ten", "one"} & set(words)
    assert all(word == word.lower() or word in CONTRACTIONS.values() for word in words)
    assert not re.search(r"[!?()\-\t\n]", normalize(answer))


@given(st.lists(st.sampled_from(["yes", "Yes", "a dog", "two", "no."]), min_size=1, max_size=10), st.randoms())
def test_order_of_people_changes_nothing(people: list[str], chooser) -> None:
    turned = chooser.sample(people, len(people))
    for rule in RULES:
        assert accuracy("yes", people, rule) == pytest.approx(accuracy("yes", turned, rule))


def literally(answer: str, people: list[str], rule: str) -> float:
    """The official loop over people as it is described, written anew: leave one out, count, cut at one."""
    people = [text.replace("\n", " ").replace("\t", " ").strip() for text in people]
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    if rule == "normalized" or len(set(people)) > 1:
        people, answer = [normalize(text) for text in people], normalize(answer)
    shares = []
    for left_out in range(len(people)):
        others = [text for place, text in enumerate(people) if place != left_out]
        shares.append(min(1.0, others.count(answer) / 3))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("rule", RULES)
def test_vizwiz_equals_an_independent_computation(shared: Path, tmp_path: Path, rule: str) -> None:
    path = shared / "vqa" / "vizwiz_val_annotations_vqa_format.json"
    rows = json.loads(path.read_text())["annotations"]
    people = {row["question_id"]: [answer["answer"] for answer in row["answers"]] for row in rows}
    commonest = {i: Counter(texts).most_common(1)[0][0] for i, texts in people.items()}
    figures = []
    for answers in (commonest, dict.fromkeys(people, "")):
        file = tmp_path / "answers.json"
        file.write_text(json.dumps([{"question_id": i, "answer": text} for i, text in answers.items()]))
        report = evaluate_answers(file, str(path), output=tmp_path / "report.json", rule=rule)
        expected = {i: 100 * literally(answers[i], texts, rule) for i, texts in people.items()}
        assert report["count"] == 4319
        assert report["scores"]["accuracy"] == pytest.approx(sum(expected.values()) / 4319)
        lines = (tmp_path / "per_question.jsonl").read_text().splitlines()
        assert all(abs(row["accuracy"] - expected[row["question_id"]]) < 1e-3 for row in map(json.loads, lines))
        for kind in set(report["per_answer_type"]):
            members = [expected[row["question_id"]] for row in rows if row.get("answer_type") == kind]
            assert report["per_answer_type"][kind] == pytest.approx(sum(members) / len(members))
        figures.append(report["scores"]["accuracy"])
    assert figures[0] > 70
    assert figures[1] < 1
    assert "4319 answers are empty" in format_accuracy(report)


def test_every_published_format(tmp_path: Path) -> None:
    texts = ["red"] * 6 + ["blue"] * 4
    rows = [{"answer": text, "answer_id": n + 1, "answer_confidence": "yes"} for n, text in enumerate(texts)]
    formats = {
        "vqav2": {
            "annotations": [{"question_id": 7, "answers": rows, "answer_type": "other", "question_type": "what"}]
        },
        "textvqa": {"dataset_type": "val", "data": [{"question_id": 7, "answers": texts}]},
        "vizwiz": [{"image": "7.jpg", "answers": rows, "answer_type": "other", "answerable": 1}],
    }
    for name, value in formats.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        ((key, found),) = read_answered(str(path)).items()
        assert (key, found.answers) == ("7.jpg" if name == "vizwiz" else 7, tuple(texts))
    (tmp_path / "answers.json").write_text('[{"image": "7.jpg", "answer": "red"}]')
    assert evaluate_answers(tmp_path / "answers.json", str(tmp_path / "vizwiz.json"))["scores"]["accuracy"] == 100


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"questions": []}', "not a file of answered questions"),
        ('{"annotations": [{"question_id": 1}]}', "not a file of answered questions"),
        ('{"annotations": [{"question_id": 1, "answers": []}]}', "no answers by people"),
        ('{"annotations": [{"question_id": 1, "answers": ["a"]}, {"question_id": 1, "answers": ["a"]}]}', "twice"),
        ('{"annotations": [{"question_id": 2, "answers": ["a"]}]}', "lack 1 of 1 questions"),
    ],
)
def test_unusable_references_are_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "answers.json").write_text('[{"question_id": 1, "answer": "a"}]')
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        evaluate_answers(tmp_path / "answers.json", str(tmp_path / "truth.json"))
    with pytest.raises(DataError, match="0 questions"):
        read_answered(str(make_shards(tmp_path / "shards", [2])))


def test_people_count_without_ids_of_their_own(tmp_path: Path) -> None:
    """VizWiz gives answers without answer_id; the official loop would take equal ones for one and the same person."""
    truth = [{"image": "1.jpg", "answers": [{"answer": "red", "answer_confidence": "yes"}] * 10}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "answers.json").write_text('[{"image": "1.jpg", "answer": "red"}]')
    assert evaluate_answers(tmp_path / "answers.json", str(tmp_path / "truth.json"))["scores"]["accuracy"] == 100


def test_groups_and_rules() -> None:
    truth = {1: Answered(("yes",) * 10, "yes/no", "is"), 2: Answered(("red",) * 10, "other", "what")}
    scores = score_answers({1: "Yes", 2: "red"}, truth)
    assert (scores.overall, scores.per_answer_type) == (50, {"other": 100, "yes/no": 0})
    assert scores.per_question_type == {"is": 0, "what": 100}
    with pytest.raises(DataError, match="official or normalized"):
        score_answers({1: "Yes", 2: "red"}, truth, "lenient")


def write_questions(folder: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    """Shards with a question of each (text, type, answer type, answer of all people)."""
    samples = [
        Sample(f"{n:04}", n, jpeg(), (), (Question(n, text, (answer,) * 10, kind, answers),))
        for n, (text, kind, answers, answer) in enumerate(rows)
    ]
    folder.mkdir()
    write_index(folder, ShardIndex("t", [write_shard(folder / "t-000000.tar", samples)]))
    return folder


def test_controls_are_answers_without_a_look(tmp_path: Path) -> None:
    training = write_questions(
        tmp_path / "train",
        [("Is it red?", "is it", "yes/no", "no")] * 3
        + [("Is it red?", "is it", "yes/no", "yes")] * 2
        + [("Which colour?", "which", "other", "teal")] * 2
        + [("Is it big?", "is it", "yes/no", "yes")] * 4,
    )
    test = [
        ("is it RED? ", "is it", "yes/no", "no"),  # the same text
        ("Is it new?", "is it", "yes/no", "yes"),  # the type: 6 of 9 say yes
        ("Which shape?", "which", "other", "circle"),  # the type says teal
        ("How many?", "how many", "other", "yes"),  # any: yes is commonest
    ]
    references = write_questions(tmp_path / "test", test)
    for name, said in (("real", ["no", "yes", "circle", "yes"]), ("other", ["yes", "yes", "circle", "2"])):
        rows = [{"question_id": n, "answer": text} for n, text in enumerate(said)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    report = evaluate_answers(
        tmp_path / "real.json", str(references), other_images=tmp_path / "other.json", training=str(training)
    )
    assert report["scores"]["accuracy"] == 100
    assert report["controls"] == {
        "other images": {"accuracy": 50, "other": 50, "yes/no": 50},
        "commonest training answer": {"accuracy": 75, "other": 50, "yes/no": 100},
    }
    shown = format_accuracy(report)
    assert "Without the image, commonest training answer: accuracy 75.00, other 50.00, yes/no 100.00" in shown
    (tmp_path / "fewer.json").write_text('[{"question_id": 0, "answer": "no"}]')
    with pytest.raises(DataError, match="lack 3 of 4 questions"):
        evaluate_answers(tmp_path / "real.json", str(references), other_images=tmp_path / "fewer.json")
    (tmp_path / "truth.json").write_text('{"annotations": [{"question_id": 0, "answers": ["no"]}]}')
    with pytest.raises(DataError, match="holds no texts of questions"):
        evaluate_answers(tmp_path / "fewer.json", str(tmp_path / "truth.json"), training=str(training))
