"""What an adapter folder is, without loading the frozen parts."""

from __future__ import annotations

from pathlib import Path

from excitor_mm.adapter import LORA, TENSORS, load_config
from excitor_mm.errors import AdapterError


def describe(folder: Path) -> str:
    """A few lines for the terminal: what it needs, its size, its gates by layer.

    Raises:
        AdapterError: not an adapter folder, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    config = load_config(folder)
    lora = config.lora
    count, size = 0, 0
    gates: dict[str, list[float]] = {}
    for path in [folder / TENSORS, *([folder / LORA] if lora.rank else [])]:
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{path} is damaged ({error}): copy the adapter again.") from error
        count += sum(tensor.numel() for tensor in tensors.values())
        size += path.stat().st_size
        gates |= {name.split(".")[1]: tensor.tolist() for name, tensor in tensors.items() if name.endswith(".gate")}
    lines = [
        f"adapter          {folder} (format {config.format_version})",
        f"language model   {config.language.path}, fingerprint {config.language_fingerprint}",
        *(f"encoder          {e.library} {e.model}, weights {e.weights}" for e in config.vision),
        f"                 fingerprint {config.vision_fingerprint}",
        f"trainables       {count:,} in {size / 2**20:.1f} MiB",
        *(f"prompt           {task}: {template!r}" for task, template in config.prompts.templates.items()),
        f"palette          {len(config.prompts.palette)} words: {' '.join(config.prompts.palette)[:60]}",
        *([f"LoRA             rank {lora.rank}, alpha {lora.alpha}, {' '.join(lora.targets)}"] if lora.rank else []),
        *(f"{key:<16} {value}" for key, value in config.training.items()),
        "gates by layer, one per key head:",
    ]
    for layer in sorted(gates, key=int):
        lines.append(f"  {layer:>3}  " + "  ".join(f"{gate:+.3f}" for gate in gates[layer]))
    return "\n".join(lines)
