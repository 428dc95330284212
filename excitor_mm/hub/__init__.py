"""transformers' own interfaces to an adapter. Importing this package registers them:

    import excitor_mm.hub
    from transformers import pipeline

    pipeline("image-text-to-text", model="data/adapters/coco-small")

`AutoConfig`, `AutoProcessor` and `AutoModelForImageTextToText` then know adapter folders and Hub ids.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from excitor_mm.hub.configuration import ExcitorHubConfig
from excitor_mm.hub.modeling import ExcitorForImageTextToText
from excitor_mm.hub.processing import ExcitorProcessor

__all__ = ["ExcitorForImageTextToText", "ExcitorHubConfig", "ExcitorProcessor"]

AutoConfig.register(ExcitorHubConfig.model_type, ExcitorHubConfig)
AutoProcessor.register(ExcitorHubConfig, ExcitorProcessor)
AutoModelForImageTextToText.register(ExcitorHubConfig, ExcitorForImageTextToText)
