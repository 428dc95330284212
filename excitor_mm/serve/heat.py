"""An explained answer as HTML: hover a word, or tap it, and see where the model looked. No script."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from excitor_mm.explain import Explanation

SIDE = 512  # longest side of the picture on the page, in pixels
CELLS = 64  # longest side of a map; the browser enlarges it smoothly

BRIGHTEST = 99  # per cent of the weights are darker than the brightest colour: single patches can outshine all

STYLE = """
.heat { position: relative }
.heat .word { padding: .1em .25em; border-radius: .3em; cursor: pointer; font-size: 1.3em }
.heat .word:hover, .heat .word:focus { background: #d9822b; color: #fff; outline: none }
.heat .share { font-size: .6em; opacity: .7; vertical-align: super }
.heat .photo { position: relative; display: inline-block; margin-top: .5em; max-width: 100% }
.heat .photo img { display: block; max-width: 100%; border-radius: .5em }
.heat .photo .map { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0; transition: opacity .15s }
"""


def heat_html(found: Explanation) -> str:
    """The answer's words above the photo; all maps share one scale, so a word the patches hardly moved stays clear.

    The small number at a word is the share of attention that the Excitor moved.
    """
    photo = found.photo.copy()
    photo.thumbnail((SIDE, SIDE))
    highest = max(float(np.percentile(found.maps[:, found.seen], BRIGHTEST)), 1e-12)
    shifts = found.shifts.mean(axis=(1, 2))
    words, maps, rules = [], [], []
    for index, (word, values, shift) in enumerate(zip(found.words, found.maps, shifts, strict=True)):
        label = f'{html.escape(word)}<span class="share">{shift:.0%}</span>'
        words.append(f'<span class="word w{index}" tabindex="0">{label}</span>')
        maps.append(f'<img class="map m{index}" alt="" src="{_url(_glow(values / highest), "PNG")}">')
        rules += [f".heat .w{index}:{state} ~ .photo .m{index} {{ opacity: 1 }}" for state in ("hover", "focus")]
    picture = f'<img alt="the picture" src="{_url(photo, "JPEG")}">'
    style = f"<style>{STYLE}{' '.join(rules)}</style>"
    return f'<div class="heat">{style}{" ".join(words)}<br><span class="photo">{picture}{"".join(maps)}</span></div>'


def _glow(values: np.ndarray) -> Image.Image:
    """0 clear, 1 yellow; darkens what is not looked at."""
    heat = np.clip(values, 0, 1)
    colours = np.zeros((*heat.shape, 4), np.uint8)
    colours[..., 0] = np.clip(heat * 510, 0, 255)
    colours[..., 1] = np.clip(heat * 510 - 255, 0, 255)
    colours[..., 3] = 110 + heat * 60
    picture = Image.fromarray(colours, "RGBA")
    picture.thumbnail((CELLS, CELLS))
    return picture


def _url(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
