r"""Reads units of measure in answers: `5 feet 6 inches`, `12\text{ cm}^2`, `$18 per day`, `30^\circ`, `12.5%`."""

import re
from fractions import Fraction
from typing import NamedTuple

from pqm_fast.evaluate.answers.expression import FUNCTION_WORDS, GREEK, TRIGONOMETRIC

# dimension, size in a unit of that dimension, names; comparisons use the first name
_TABLE = [
    ("length", "1/1000", "mm millimeter millimetre"),
    ("length", "1/100", "cm centimeter centimetre"),
    ("length", "1", "m meter metre"),
    ("length", "1000", "km kilometer kilometre"),
    ("length", "0.0254", "in inch inches"),
    ("length", "0.3048", "ft foot feet"),
    ("length", "0.9144", "yd yard"),
    ("length", "1609.344", "mi mile"),
    ("time", "1/1000", "ms millisecond"),
    ("time", "1", "s sec second"),
    ("time", "60", "min minute"),
    ("time", "3600", "h hr hour"),
    ("time", "86400", "d day"),
    ("time", "604800", "wk week"),
    ("months", "1", "month"),
    ("months", "12", "yr year"),
    ("mass", "1/1000", "mg milligram"),
    ("mass", "1", "g gram"),
    ("mass", "1000", "kg kilogram"),
    ("mass", "28.349523125", "oz ounce"),
    ("mass", "453.59237", "pound lb £"),  # pounds of money and of mass have one name
    ("volume", "1/1000", "ml milliliter millilitre mL"),
    ("volume", "1", "l liter litre L"),
    ("money", "1/100", "¢ cent penny pennies"),
    ("money", "1", "$ dollar USD"),
    ("money of India", "1", "₹ rupee"),
    ("money of Europe", "1", "€ euro"),
    ("", "1/100", "% percent"),
    ("angle", "1", "degree deg"),
    ("", "1", "radian rad"),
]
_UNITS = {
    name: (names.split()[0], dimension, Fraction(size)) for dimension, size, names in _TABLE for name in names.split()
}
_SHORT = sorted((name for name in _UNITS if 2 <= len(name) <= 3 and name.isalpha()), key=len, reverse=True)
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_POWERS = {"square": 2, "sq": 2, "cubic": 3}
_PLAIN_WORDS = (
    "half third quarter halves thirds quarters and or plus minus times over more less squared cubed mod choose base "
    "divided equals not but to is by point root power factorial negative positive doubled tripled"
)
_PARTS = {
    f"{part}th{s}" for part in ("four", "fif", "six", "seven", "eigh", "nin", "ten", "hundred") for s in ("", "s")
}
_NO_UNITS = {*FUNCTION_WORDS, *GREEK, *_PARTS, *_PLAIN_WORDS.split()}

_word = rf"(?:[a-zA-Z]{{3,}}|(?:{'|'.join(_SHORT)}|sq)(?![a-zA-Z]))\.?"
_raised = r"(?:\s*\^\s*\{?\s*\d\s*\}?)?"
_PLAIN = re.compile(
    rf"(?<=[\d)}}!.])\s*(?:per\s+|/\s*)?{_word}{_raised}(?:(?:\s+|\s*/\s*){_word}{_raised}){{0,4}}(?:\s*/\s*[hs]{_raised})?\s*\Z"
)
_LETTER = re.compile(
    rf"(?<=[\d)}}.])(?:\s*m\s*/\s*s(?:\s*\^\s*\{{?2\}}?)?|\s+[mghlsdL]{_raised})\s*\Z"
)  # 5m is a product
_IN_TEXT = re.compile(rf"(?<=\S)\s*\\text\s*\{{([^{{}}]*)\}}({_raised})\s*\Z")
_SYMBOL = re.compile(r"\s*(-?)\s*\\?([$€£¢₹])\s*")
_AFTER = re.compile(r"(?<=[\d)}!.])\s*\\?([%$€£¢])\s*\Z")
_NUMBER = r"(?:\d[\d,]*(?:\.\d+)?)"
_COMPOUND = re.compile(rf"\s*({_NUMBER}(?:\s+\d+/\d+)?)\s*({_word}|[hms](?![a-zA-Z]))\s*(?:,|and\b)?\s*")


_ANGLE_OF = re.compile(rf"\\?(?:{'|'.join(TRIGONOMETRIC)})\s*\(?\s*[^()]*\Z")


class Unit(NamedTuple):
    """A unit of measure; empty strings for a number without one."""

    main: str = ""
    """In one spelling: `cm^2`, or `$` of `$18 per day`."""
    per: str = ""
    """`day` of `$18 per day`."""
    dimension: str = ""
    """`length^2`."""
    factor: Fraction = Fraction(1)
    """The size of the unit: the number times `factor` is in the unit of the dimension that has size 1 in `_TABLE`."""


class Quantity(NamedTuple):
    number: str  # text of an expression
    scale: int  # 1,000,000 for `2 million`
    unit: Unit


def quantity(text: str) -> Quantity | None:
    """A number with its unit, or without one; None if the text around the number is not a unit."""
    symbol = _SYMBOL.match(text)
    number = symbol[1] + text[symbol.end() :] if symbol else text
    currency = _named(symbol[2]) if symbol else Unit()
    if symbol_after := _AFTER.search(number):
        number = number[: symbol_after.start()]
        return None if symbol else Quantity(number, 1, _named(symbol_after[1]))
    match = _IN_TEXT.search(number) or _PLAIN.search(number) or _LETTER.search(number)
    if match is None:
        return Quantity(number, 1, currency)
    phrase = match[1] + match[2] if match.re is _IN_TEXT else match[0]
    if match.re is _PLAIN and phrase[0].isalpha() and re.split(r"[^a-zA-Z]", phrase)[0] not in _UNITS:
        return None  # 5abc
    scale, words = 1, phrase.split()
    while words and words[0].lower() in _SCALES:
        scale *= _SCALES[words.pop(0).lower()]
    unit = _unit(" ".join(words))
    if unit is not None and unit.main == "degree" and _ANGLE_OF.search(number):
        return Quantity(text, 1, currency)  # \cos 60 degrees
    if unit is None or (currency.main and unit.main and currency.main != unit.main):
        return None
    if currency.main and unit.main == "":  # $18 per day
        dimension, factor = currency.dimension + unit.dimension, currency.factor * unit.factor
        unit = Unit(currency.main, unit.per, dimension, factor)
    return Quantity(number[: match.start()], scale, unit)


def compound(text: str) -> list[Quantity] | None:
    """Reads `5 feet 6 inches`: at least two quantities of one dimension, else None."""
    parts, position = [], 0
    while position < len(text):
        match = _COMPOUND.match(text, position)
        unit = _unit(match[2]) if match else None
        if match is None or unit is None or not unit.dimension:
            return None
        parts.append(Quantity(match[1], 1, unit))
        position = match.end()
    return parts if len(parts) > 1 and len({part.unit.dimension for part in parts}) == 1 else None


def _named(word: str) -> Unit:
    name, dimension, factor = _UNITS[word]
    return Unit(name, "", dimension, factor)


def _unit(phrase: str) -> Unit | None:
    phrase = re.sub(r"\bmph\b", "mile/hour", re.sub(r"\bkph\b", "km/hour", phrase))
    numerator, *denominators = re.split(r"\s*/\s*|(?:^|\s+)per\s+", phrase.strip())
    parts = [product for part in (numerator, *denominators) if (product := _product(part)) is not None]
    if len(parts) <= len(denominators) or not all(denominators):
        return None
    (main, dimension, factor), *per = parts
    for _, per_dimension, size in per:
        dimension, factor = f"{dimension}/{per_dimension}", factor / size
    return Unit(main, "/".join(name for name, *_ in per), dimension, factor)


def _product(phrase: str) -> tuple[str, str, Fraction] | None:
    """(name, dimension, factor) of words and powers without `per`."""
    names, dimensions, factor, power = [], [], Fraction(1), 1
    for word, raised in re.findall(r"([a-zA-Z$€£¢%]+)\.?\s*(?:\^\s*\{?\s*(\d)\s*\}?)?", phrase):
        if word.lower() in _NO_UNITS:
            return None
        if word.lower() in _POWERS:
            power = _POWERS[word.lower()]
            continue
        table_name = next(
            (form for form in (word, word.lower(), word.lower().removesuffix("s")) if form in _UNITS), None
        )
        plain = word if word[1:] != word[1:].lower() else word.lower()  # MPa is not mPa
        singular = re.sub(r"(?<=[xhs])es\Z|(?<!s)s\Z", "", plain) if len(word) > 3 else plain
        # a word that is not in the table is a separate dimension: 5 volumes are not 5 litres
        name, dimension, size = _UNITS[table_name] if table_name else (singular, f"number of {singular}", Fraction(1))
        exponent = int(raised) if raised else power
        suffix = f"^{exponent}" if exponent > 1 else ""
        names.append(name + suffix)
        dimensions.append(dimension + suffix if dimension else "")
        factor, power = factor * size**exponent, 1
    return " ".join(names), " ".join(dimensions), factor
