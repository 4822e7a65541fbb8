"""A font that has the letters of the class names, for drawn boxes and for plots.

matplotlib's own font has Latin, Greek, Cyrillic, Arabic and Hebrew, not Chinese, Japanese, Korean, Thai or Hindi. For these the
machine's fonts are searched, once per set of letters.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITH_NAMES = frozenset("0123456789. ")  # what is written beside a class name
LESS_LIKED = ("bold", "black", "italic", "oblique", "thin", "light", "serif", "mono")  # in the names of font files
SHOWN = 10  # letters that a warning lists


def font_for(texts: Iterable[str]) -> str:
    """File of a font that has all letters of the texts.

    If no font of the machine has them all, it is the one that lacks the fewest, and a warning names those.
    """
    letters = {letter for text in texts for letter in text if not letter.isascii()}
    # not of control characters and variation selectors, which are not drawn
    visible = frozenset(letter for letter in letters if unicodedata.category(letter) not in ("Cc", "Cf", "Mn", "Zs"))
    return _font_with(visible) if visible else _plain_font()


def use_fonts_for_texts(figure: Figure) -> None:
    """Let all texts of a matplotlib figure fall back on a font that has their letters."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    file = font_for(text.get_text() for text in texts)
    if file != _plain_font():
        fontManager.addfont(file)
        fallback = FontProperties(fname=file).get_name()
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), fallback])


@cache
def _font_with(letters: frozenset[str]) -> str:
    best, missing = _plain_font(), letters - _letters_of(_plain_font())
    if not missing:
        return best
    for file in _installed_fonts():
        has = _letters_of(file)
        if has >= WITH_NAMES and len(letters - has) < len(missing) and _is_scalable(file):
            best, missing = file, letters - has
            if not missing:
                return best
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    warnings.warn(
        f"no font on this machine has all letters of the names: {' '.join(sorted(missing)[:SHOWN])}{more} will be drawn as "
        "squares. Install a font that has them, such as Noto (on Debian and Ubuntu: fonts-noto-core and fonts-noto-cjk)",
        stacklevel=3,
    )
    return best


def _installed_fonts() -> list[str]:
    """Files, upright fonts of ordinary weight first."""
    from matplotlib import font_manager

    files = [file for file in font_manager.findSystemFonts() if "lastresort" not in Path(file).name.lower()]
    return sorted(files, key=lambda file: (sum(word in Path(file).name.lower() for word in LESS_LIKED), file))


@cache
def _letters_of(file: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (RuntimeError, OSError, ValueError):  # a broken font, or one of a kind that this library does not know
        return frozenset()


def _is_scalable(file: str) -> bool:
    """Emoji come as pictures of one size."""
    try:
        ImageFont.truetype(file, 11)
    except OSError:
        return False
    return True


@cache
def _plain_font() -> str:
    """matplotlib's font: Pillow's own cannot be given to torchvision, and lacks letters beyond Latin."""
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
