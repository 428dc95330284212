"""Examples of every command, shown by its `--help`. A test parses each."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "fetch-defaults": ("excitor-mm fetch-defaults",),
    "pack-coco": (
        "excitor-mm pack-coco --images coco --karpathy dataset_coco.json --split train --output data/coco/train",
        "excitor-mm pack-coco --images photos --captions captions.json --output data/mine --max-size 336",
    ),
    "pack-vqa": (
        "excitor-mm pack-vqa --images val2014 --questions questions.json --answers answers.json --output data/vqa",
    ),
    "pack-scienceqa": (
        "excitor-mm pack-scienceqa --problems problems.json --images images --split train --output data/sqa",
    ),
    "pack-instructions": ("excitor-mm pack-instructions --rows alpaca.json --output data/alpaca",),
    "shards check": (
        "excitor-mm shards check data/coco/train",
        "excitor-mm shards check data/coco/train --ranks 8 --workers 4 --batch-size 32",
    ),
    "cache-features": (
        "excitor-mm cache-features --config configs/coco_caption_small.yaml --views 8",
        "excitor-mm cache-features --config configs/coco_caption_small.yaml --precision float32",
    ),
    "train": (
        "excitor-mm train --config configs/demo.yaml",
        "excitor-mm train --config configs/coco_caption_small.yaml --train.learning_rate 1e-3 --dry-run",
        "excitor-mm train --config configs/coco_caption_small.yaml --resume",
        "excitor-mm train --config configs/coco_caption_small_scst.yaml --train.start runs/coco_caption_small/best",
    ),
    "caption": (
        "excitor-mm caption photo.jpg",
        "excitor-mm caption photos --output captions.jsonl",
        "excitor-mm caption 'photos/**/*.png' --sidecar --beams 5",
        "excitor-mm caption 'shards/*.tar' --output captions.csv --adapter runs/train/best",
        "excitor-mm caption inbox --output captions.jsonl --watch 2",
    ),
    "predict": ("excitor-mm predict --shards data/coco/test --output runs/test.jsonl --adapter runs/train/best",),
    "ask": (
        "excitor-mm ask photo.jpg 'What is on the table?' --adapter runs/vqa/best",
        "excitor-mm ask 'What is the capital of France?' --base",
        "excitor-mm ask photo.jpg --repl --adapter runs/vqa/best",
        "excitor-mm ask 'Is the sky blue or green?' --choices blue green --base --json",
        "excitor-mm ask --questions questions.json --images val2014 --output answers.jsonl --adapter runs/vqa/best",
    ),
    "inspect": ("excitor-mm inspect data/adapters/coco-small",),
    "explain": ("excitor-mm explain photo.jpg --output runs/explained",),
    "forgetting": ("excitor-mm forgetting --adapter runs/train/best --mmlu mmlu --output runs/forgetting.json",),
    "evaluate captions": (
        "excitor-mm evaluate captions --predictions runs/test.jsonl --references data/coco/test --shuffled-control",
        "excitor-mm evaluate captions --predictions a.jsonl --references data/coco/test --against b.jsonl",
        "excitor-mm evaluate captions --predictions runs/test.jsonl --references data/coco/test "
        "--pictures data/coco/test --output runs/report.json",
    ),
    "evaluate vqa": ("excitor-mm evaluate vqa --predictions answers.jsonl --references v2_mscoco_val2014.json",),
    "evaluate scienceqa": (
        "excitor-mm evaluate scienceqa --predictions answers.jsonl --problems problems.json --splits pid_splits.json",
    ),
    "compare": ("excitor-mm compare runs/a runs/b --published --format markdown",),
    "benchmark": ("excitor-mm benchmark --shards data/coco/test --adapter runs/train/best --output runs/benchmark",),
    "submit coco": (
        "excitor-mm submit coco --val val.jsonl --test test.jsonl --val-images captions_val2014.json "
        "--test-images image_info_test2014.json --algorithm excitor --output submission",
    ),
    "submit vqa": (
        "excitor-mm submit vqa --predictions answers.jsonl --questions test.json --algorithm excitor --output out",
    ),
    "submit vizwiz": ("excitor-mm submit vizwiz --predictions answers.jsonl --questions test.json --output out",),
    "push": (
        "excitor-mm push runs/train/best me/my-captioner --report runs/report.json --card-only",
        "excitor-mm push runs/train/best me/my-captioner --report runs/report.json --private",
    ),
    "serve": (
        "excitor-mm serve",
        "excitor-mm serve --adapter runs/a/best runs/b/best --port 8000",
        "excitor-mm serve --host 0.0.0.0 --no-page",
    ),
    "doctor": ("excitor-mm doctor", "excitor-mm doctor --quick"),
    "completion": ("excitor-mm completion bash", "excitor-mm completion zsh"),
}
