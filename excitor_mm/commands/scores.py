"""evaluate, compare and benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import predict_options, run_predict
from excitor_mm.errors import ConfigError
from excitor_mm.options import Command


def _caption_score_options(parser: ArgumentParser) -> None:
    parser.add_argument("--split", type=str | None, default=None, help="of Karpathy's file or of --ids")
    parser.add_argument("--ids", type=Path | None, default=None, help="file that names the images that count")
    parser.add_argument("--subset", action="store_true", help="score only the predicted images; labelled as such")
    parser.add_argument("--shuffled-control", action="store_true", help="also score captions moved to other images")
    parser.add_argument(
        "--clip-model",
        type=str | None,
        default=None,
        help="also CLIPScore, by an open_clip MODEL:TAG or MODEL:FILE",
    )
    parser.add_argument(
        "--metrics",
        choices=["BLEU", "METEOR", "ROUGE-L", "CIDEr", "SPICE"],
        nargs="+",
        default=["BLEU", "METEOR", "ROUGE-L", "CIDEr"],
        help="SPICE downloads CoreNLP (385 MB) on first use, and needs Java 8 and 8 GB of memory",
    )


def _evaluate_captions_options(parser: ArgumentParser) -> None:
    parser.add_argument("--predictions", type=Path, required=True, help="predictions.jsonl or COCO results")
    parser.add_argument("--references", type=str, required=True, help="shards, COCO annotations or Karpathy's file")
    parser.add_argument("--against", type=Path | None, default=None, help="other predictions, compared by image")
    parser.add_argument("--pictures", type=str | None, default=None, help="shards: writes report.html with pictures")
    parser.add_argument("--output", type=Path | None, default=None, help="report.json")
    _caption_score_options(parser)


def _evaluate_captions(options: Namespace) -> int:
    from excitor_mm.evaluate.captions import evaluate_captions, format_scores

    _check_page(options)
    report = evaluate_captions(
        options.predictions,
        options.references,
        output=options.output,
        split=options.split,
        ids=options.ids,
        metrics=options.metrics,
        subset=options.subset,
        shuffled_control=options.shuffled_control,
        against=options.against,
        clip_model=options.clip_model,
        pictures=options.pictures,
    )
    _write_page(options, "caption", report, "references", "split")
    print(format_scores(report))
    return 1 if report["failed"] or report["remarks"] else 0


def _check_page(options: Namespace) -> None:
    """Before scoring, refuse a page that could not be written."""
    from excitor_mm.data.shards import list_shards

    if options.pictures is not None:
        if options.output is None:
            raise ConfigError("--pictures is given without --output: report.html lies beside report.json.")
        list_shards(options.pictures)


def _write_page(options: Namespace, task: str, report: dict[str, Any], *names: str) -> None:
    """report.html where --pictures asks for one, with the command whose options are `names`."""
    from excitor_mm.report import write_score_report

    if options.pictures is None:
        return
    given = [
        f"--{name} {options[name]}"
        for name in ("predictions", *names, "pictures", "output")
        if options[name] is not None
    ]
    command = f"excitor-mm evaluate {report['task']} {' '.join(given)}"
    write_score_report(options.output, task, options.pictures, report, [command])


def _evaluate_vqa_options(parser: ArgumentParser) -> None:
    parser.add_argument("--predictions", type=Path, required=True, help="rows with question_id (or image) and answer")
    parser.add_argument(
        "--references", type=str, required=True, help="VQAv2, OK-VQA, VizWiz or TextVQA file with answers, or shards"
    )
    parser.add_argument(
        "--rule", choices=["official", "normalized"], default="official", help="see docs/evaluation.md"
    )
    parser.add_argument(
        "--other-images", type=Path | None, default=None, help="what predict --other-images wrote, scored beside"
    )
    parser.add_argument(
        "--training", type=str | None, default=None, help="shards whose commonest answers are scored beside"
    )
    parser.add_argument("--pictures", type=str | None, default=None, help="shards: writes report.html with pictures")
    parser.add_argument("--output", type=Path | None, default=None, help="report.json")


def _evaluate_vqa(options: Namespace) -> int:
    from excitor_mm.evaluate.vqa import evaluate_answers, format_accuracy

    _check_page(options)
    report = evaluate_answers(
        options.predictions,
        options.references,
        output=options.output,
        rule=options.rule,
        other_images=options.other_images,
        training=options.training,
    )
    _write_page(options, "vqa", report, "references", "rule")
    print(format_accuracy(report))
    return 0


def _evaluate_scienceqa_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--predictions", type=Path, required=True, help="rows with question_id and answer, or results"
    )
    parser.add_argument("--problems", type=Path, required=True, help="problems.json")
    parser.add_argument("--splits", type=Path | None, default=None, help="pid_splits.json")
    parser.add_argument("--split", type=str | None, default="test", help="test, val, minitest, ...")
    parser.add_argument(
        "--rule", choices=["strict", "original", "recorded"], default="strict", help="see docs/evaluation.md"
    )
    parser.add_argument("--subset", action="store_true", help="score the problems that both files have")
    parser.add_argument("--pictures", type=str | None, default=None, help="shards: writes report.html with pictures")
    parser.add_argument("--output", type=Path | None, default=None, help="report.json")


def _evaluate_scienceqa(options: Namespace) -> int:
    from excitor_mm.evaluate.scienceqa import evaluate_scienceqa, format_table

    _check_page(options)
    report = evaluate_scienceqa(
        options.predictions,
        options.problems,
        splits=options.splits,
        split=options.split,
        output=options.output,
        rule=options.rule,
        subset=options.subset,
    )
    _write_page(options, "scienceqa", report, "problems", "splits", "split", "rule")
    print(format_table(report))
    return 0


def _compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("reports", type=Path, nargs="+", help="report.json files, or folders with one")
    parser.add_argument("--published", action="store_true", help="add what others claim about the same images")
    parser.add_argument("--format", choices=["text", "markdown", "html"], default="text", help="of the table")


def _compare(options: Namespace) -> int:
    from excitor_mm.evaluate.compare import compare_reports

    print(compare_reports(options.reports, published=options.published, style=options.format))
    return 0


def _benchmark_options(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions and reports")
    parser.add_argument(
        "--references", type=str | None, default=None, help="COCO annotations or Karpathy's file; else the shards"
    )
    parser.add_argument("--algorithm", type=str | None, default=None, help="name of the method: writes a submission")
    parser.add_argument("--test-shards", type=str | None, default=None, help="test2014, for the submission")
    parser.add_argument("--val-images", type=Path | None, default=None, help="captions_val2014.json")
    parser.add_argument("--test-images", type=Path | None, default=None, help="image_info_test2014.json")
    _caption_score_options(parser)
    predict_options(parser)


def _benchmark(options: Namespace) -> int:
    """Predict, evaluate, and write the submission where one is asked for."""
    needed = ("test_shards", "val_images", "test_images")
    if options.algorithm is not None and any(options[name] is None for name in needed):
        raise ConfigError(
            "--algorithm asks for a submission: give --test-shards, --val-images and --test-images, too."
        )
    _check_benchmark(options)
    predictions, test_predictions = options.output / "predictions.jsonl", options.output / "test_predictions.jsonl"
    run_predict(options, predictions)
    if options.algorithm is not None:
        run_predict(Namespace({**vars(options), "shards": options.test_shards}), test_predictions)

    from accelerate import PartialState

    if not PartialState().is_main_process:
        return 0
    scoring = Namespace(
        {
            **vars(options),
            "predictions": predictions,
            "references": options.references or options.shards,
            "pictures": options.shards,
            "output": options.output / "report.json",
            "against": None,
        }
    )
    status = _evaluate_captions(scoring)
    if options.algorithm is not None:
        from excitor_mm.submit import write_coco

        images = options.val_images, options.test_images
        print(write_coco(predictions, test_predictions, *images, options.algorithm, options.output))
    return status


def _check_benchmark(options: Namespace) -> None:
    """Fail on what would fail after hours of captioning."""
    from excitor_mm.metrics.java import find_java
    from excitor_mm.references import read_references
    from excitor_mm.submit import check_algorithm, official_ids

    find_java()
    if options.references is not None:
        read_references(options.references, options.split, options.ids)
    if options.algorithm is not None:
        check_algorithm(options.algorithm)
        for path in (options.val_images, options.test_images):
            official_ids(path, "images", "id")


COMMANDS = (
    Command("evaluate captions", "BLEU, METEOR, ROUGE-L and CIDEr.", _evaluate_captions_options, _evaluate_captions),
    Command("evaluate vqa", "VQA accuracy.", _evaluate_vqa_options, _evaluate_vqa),
    Command("evaluate scienceqa", "ScienceQA's table.", _evaluate_scienceqa_options, _evaluate_scienceqa),
    Command("compare", "Several reports, and published claims, in one table.", _compare_options, _compare),
    Command("benchmark", "Predict, evaluate, write the report and the submission.", _benchmark_options, _benchmark),
)
