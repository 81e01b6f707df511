"""The closed word classes that faithfulness needs: function words, fillers, numbers, units, negations."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final


def _split(text: str) -> list[str]:
    return text.split()


FUNCTION_WORDS: Final = frozenset(
    _split("""a an the this that these those some any each every either both all most more less few many much
    such own same other another
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us
    our ours ourselves they them their theirs themselves one ones who whom whose which what where when why how
    there here then than so as if whether though although because since while whereas unless until till
    and or but nor not no yes true false yet for of in on at by to from with without within into onto upon
    about above below over under between among through during before after against per via toward towards
    along across around off out up down again further once only just also too very quite rather even still
    ever never always often is am are was were be been being has have had having do does did doing done can
    could shall should will would may might must ought let lets let's
    isn't aren't wasn't weren't don't doesn't didn't can't cannot
    couldn't won't wouldn't shouldn't hasn't haven't hadn't mustn't it's that's there's what's whats he's
    she's who's you're they're we're
    please tell give say know pls thing things something anything everything nothing someone anyone everyone
    etc e g i.e ie eg vs however therefore thus hence moreover furthermore additionally overall
    lol umm um uh hmm ok okay yeah hey well kind sort sure guess think maybe perhaps idea question depends lot
    said good
    """)
)
"""English function words, and the fillers of chat.

Those of other languages count as content: they stand in the
sources as in the output."""

CLAUSE_WORDS: Final = frozenset(_split("and while with which who whose whereas but where because although"))
"""Words that open a clause."""

_ONES: Final = _split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS: Final = _split("twenty thirty forty fifty sixty seventy eighty ninety")
TENS: Final = frozenset(_TENS)
NUMBER_WORDS: Final[Mapping[str, int]] = (
    {word: value for value, word in enumerate(_ONES)}
    | {word: 10 * value for value, word in enumerate(_TENS, start=2)}
    | {"hundred": 100, "dozen": 12}
)
ORDINALS: Final[Mapping[str, int]] = {
    word: value
    for value, word in enumerate(
        _split(
            "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
            "fourteenth "
            "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
        ),
        start=1,
    )
}
SOFT_NUMBERS: Final = frozenset(("one", "zero", "first", "second"))
"""Number words that are as often no number: "one of them", "first, …", "a second"."""
SOFT_NAMES: Final = frozenset(_split("sun moon earth union internet web"))
"""Common nouns that are often capitalised: whether a text has them is a matter of its wording."""
SCALES: Final[Mapping[str, Decimal]] = {
    "thousand": Decimal(1000),
    "million": Decimal(10**6),
    "billion": Decimal(10**9),
    "trillion": Decimal(10**12),
}

MONTHS: Final[Mapping[str, int]] = {
    word: month
    for month, spellings in enumerate(
        (
            "january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul",
            "august aug", "september sept sep", "october oct", "november nov", "december dec",
        ),
        start=1,
    )
    for word in spellings.split()
}  # fmt: skip

UNITS: Final[Mapping[str, str]] = {
    spelling: canonical
    for canonical, spellings in {
        "%": "% percent per\u00a0cent",
        "km": "km kilometre kilometres kilometer kilometers",
        "m": "m metre metres meter meters",
        "cm": "cm centimetre centimetres centimeter centimeters",
        "mm": "mm millimetre millimetres millimeter millimeters",
        "mile": "mile miles mi",
        "foot": "foot feet ft",
        "inch": "inch inches",
        "km2": "km2 sq\u00a0km square\u00a0kilometre square\u00a0kilometres "
        "square\u00a0kilometer square\u00a0kilometers",
        "mi2": "sq\u00a0mi square\u00a0mile square\u00a0miles",
        "m2": "m2 square\u00a0metre square\u00a0metres square\u00a0meter square\u00a0meters",
        "kg": "kg kilogram kilograms kilo kilos",
        "g": "g gram grams grammes",
        "mg": "mg milligram milligrams",
        "pound": "pound pounds lb lbs £",
        "ounce": "ounce ounces oz",
        "ton": "ton tons tonne tonnes",
        "litre": "l L litre litres liter liters",
        "ml": "ml mL millilitre millilitres milliliter milliliters",
        "K": "K kelvin kelvins",
        "degree": "° degree degrees °C °F celsius fahrenheit",
        "s": "s sec second seconds",
        "min": "min minute minutes",
        "h": "h hr hrs hour hours",
        "day": "day days",
        "week": "week weeks",
        "month": "month months",
        "year": "year years yr yrs",
        "century": "century centuries",
        "dollar": "$ dollar dollars USD",
        "euro": "€ euro euros EUR",
        "yen": "¥ yen",
        "u": "u",
        "sq deg": "sq\u00a0deg square\u00a0degree square\u00a0degrees",
        "g/L": "g/L g/l",
        "g/cm3": "g/cm3",
        "m/s2": "m/s2",
        "m/s": "m/s",
        "km/h": "km/h kph",
        "mph": "mph",
        "W": "W watt watts",
        "V": "V volt volts",
        "Hz": "Hz hertz",
        "GB": "GB gigabyte gigabytes",
        "MB": "MB megabyte megabytes",
        "calorie": "calorie calories kcal",
    }.items()
    for spelling in spellings.split(" ")
}
"""Units by their spellings; spaces in a spelling are no-break spaces."""

NEGATIONS: Final = frozenset(
    _split("""not no never none neither nor cannot without hardly nobody nowhere
    isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't shouldn't hasn't haven't
    hadn't mustn't ain't isnt arent wasnt werent dont doesnt didnt cant couldnt wont wouldnt shouldnt hasnt
    havent hadnt nicht kein keine keinen keiner nie niemals ohne
    pas jamais aucun aucune sans
    nunca jamás ningún ninguna sin
    não nem nunca sem
    non mai nessuno senza
    niet geen nooit
    не нет никогда без ни
    δεν μην όχι χωρίς
    nie bez
    değil yok hiç
    नहीं मत बिना
    না নয় নেই
    இல்லை
    لا ليس لم لن ليست غير بدون
    לא אין בלי
    نیست نه بدون
    tidak bukan tanpa
    không chẳng chưa
    안 않다 않는다 않습니다 아니다 아닙니다 없다 없습니다 못
    """)
)
NEGATION_MARKS: Final = ("不", "没", "沒", "无", "無", "未", "非", "ない", "ません", "ไม่", "မ", "មិន", "ບໍ່")
"""Negations of scripts without spaces, looked for wherever a token begins."""
