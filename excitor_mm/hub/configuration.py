"""config.json of an adapter folder: what tells transformers that it is one. The facts are in excitor_config.json."""

from __future__ import annotations

from transformers import PretrainedConfig

from excitor_mm.adapter import MODEL_TYPE


class ExcitorHubConfig(PretrainedConfig):
    """Nothing but a name; see `excitor_mm.adapter.AdapterConfig` for what an adapter holds."""

    model_type = MODEL_TYPE
