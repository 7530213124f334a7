"""What the colours mean, the same in every picture.

Yellow is the truth, blue what is right, vermilion what is wrong or background, purple what takes
no part, grey what does not count. The colours are Okabe and Ito's, which people with any kind of
colour vision tell apart; where two kinds of line may meet, dashes tell them apart as well.
"""

from dataclasses import dataclass

YELLOW, BLUE, SKY, VERMILION = "#F0E442", "#0072B2", "#56B4E9", "#D55E00"
GREEN, PURPLE, GREY, ORANGE = "#009E73", "#CC79A7", "#B4B4B4", "#E69F00"


@dataclass(frozen=True)
class Style:
    """How a box, or a cell, of one kind looks.

    Attributes:
        colour: "#RRGGBB".
        width: of the line, pixels of the picture.
        dash: matplotlib's line style.
        filled: the legend shows a filled square, for cells of a map, instead of a line.
    """

    colour: str
    width: float = 2.0
    dash: str = "-"
    filled: bool = False


OBJECT = Style(YELLOW, 2.5)
FOUND = Style(YELLOW, 1.2)
DIFFICULT = Style(GREY, 2.5, "--")
RIGHT = Style(BLUE, 2.5)
WRONG = Style(VERMILION, 2.5)
MISSED = Style(YELLOW, 4.0, ":")
