"""Texts of many scripts: what no reader sees makes no difference to any check, what he sees does."""

import unicodedata

import pytest

from lm_mixup.augment.curate import ratings_of
from lm_mixup.augment.dedup.decontaminate import build_index
from lm_mixup.augment.dedup.minhash import is_similar, shingles
from lm_mixup.augment.reading.rows import PoolRow
from lm_mixup.chat.offline_judge import features
from lm_mixup.config import DecontaminateConfig, NearDuplicatesConfig
from lm_mixup.core.sentences import segment, sentences
from lm_mixup.core.sentences import words as count
from lm_mixup.core.task_types import detect_task_type
from lm_mixup.core.words import comparable
from lm_mixup.mixture.teacher.fact_coverage import tells

# A text and another that differs from it in letters or marks that are read.
SCRIPTS = {
    "English": (
        "The quick brown fox can't jump over a naïve dog today",
        "The slick brown box can jump under my dog",
    ),
    "Russian": (
        "Быстрая лисица ещё прыгает через ленивую собаку у реки",
        "Быстрый лисёнок не прыгал под собакой",
    ),
    "Greek": (
        "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί",
        "Ο αργός λύκος περνάει κάτω από το δέντρο",
    ),
    "Georgian": (
        "სწრაფი მელა ხტება ზარმაცი ძაღლის თავზე ყოველ დილით",
        "ნელი მგელი დგას დიდი ხის ქვეშ საღამოს",
    ),
    "Amharic": ("ፈጣኑ ቀበሮ ሰነፉን ውሻ በየቀኑ ይዘላል እና ይሮጣል", "ዘገምተኛው ተኩላ ከዛፉ ስር ማታ ይተኛል"),
    "Arabic": (
        "يَقْفِزُ الثَّعْلَبُ السَّرِيعُ فَوْقَ الكَلْبِ الكَسُولِ كُلَّ صَبَاحٍ",
        "ينام الذئب البطيء تحت الشجرة الكبيرة مساء",
    ),
    "Persian": (
        "روباه می‌خواهد از روی سگ تنبل بپرد و نمی‌تواند",
        "گرگ نمی‌داند کجا زیر درخت بزرگ می‌خوابد",
    ),
    "Hebrew": (
        "הַשּׁוּעָל הַמָּהִיר קוֹפֵץ מֵעַל הַכֶּלֶב הֶעָצֵל כׇּל בֹּקֶר",
        "הזאב האיטי ישן מתחת לעץ הגדול בערב",
    ),
    "Hindi": (
        "तेज़ लोमड़ी आलसी कुत्ते के ऊपर से कूदती है और भागती है",
        "तीज़ लामड़े आलसे कत्तो की उपर सा कादता हो",
    ),
    "Bengali": (
        "দ্রুত শিয়াল অলস কুকুরের উপর দিয়ে লাফ দেয়",
        "দ্রাতি শোয়ালি আলসা কাকরের উপের দোয়া লেফ",
    ),
    "Tamil": (
        "வேகமான நரி சோம்பேறி நாயின் மேல் தினமும் குதிக்கிறது",
        "வாகமின நாரு சீம்பாற நயின மாலு தானமி",
    ),
    "Thai": ("สุนัขจิ้งจอกกระโดดข้ามสุนัขขี้เกียจทุกเช้า", "หมาป่านอนใต้ต้นไม้ใหญ่ในตอนเย็นของวัน"),
    "Lao": ("ໝາຈອກໂດດຂ້າມໝາຂີ້ຄ້ານທຸກເຊົ້າ", "ໝາປ່ານອນຢູ່ໃຕ້ຕົ້ນໄມ້ໃຫຍ່ໃນຕອນແລງ"),
    "Khmer": ("កញ្ជ្រោងលោតរំលងឆ្កែខ្ជិលរៀងរាល់ព្រឹក", "ចចកដេកក្រោមដើមឈើធំនៅពេលល្ងាច"),
    "Burmese": (
        "မြေခွေးသည် ပျင်းရိသောခွေးကို ခုန်ကျော်သည်",
        "ဝံပုလွေသည် သစ်ပင်ကြီးအောက်တွင် အိပ်သည်",
    ),
    "Chinese": ("敏捷的棕色狐狸每天早上跳过懒惰的狗", "缓慢的灰色狼晚上睡在大树下面休息"),
    "Japanese": ("すばやい狐がのろまな犬をとびこえてガードした", "おそい狼は大きな木のしたでねむっていた"),
    "Korean": (
        "빠른 갈색 여우가 게으른 개를 매일 아침 뛰어넘는다",
        "느린 회색 늑대가 저녁에 큰 나무 아래에서 잔다",
    ),
}  # fmt: skip


def _inside(text: str, invisible: str) -> str:
    """The text with a character that nobody sees behind each letter."""
    return "".join(one + invisible if unicodedata.category(one)[0] in "LM" else one for one in text)


def _row(text: str) -> PoolRow:
    return PoolRow("x", "x", True, "pool", "qa", "", text)


DISGUISES = {
    "zero-width space": lambda text: _inside(text, "\u200b"),
    "soft hyphen": lambda text: _inside(text, "\u00ad"),
    "word joiner": lambda text: _inside(text, "\u2060"),
    "byte order mark": lambda text: f"\ufeff{text}",
    "variation selector": lambda text: _inside(text, "\ufe00"),
    "grapheme joiner": lambda text: _inside(text, "\u034f"),
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "NFKD": lambda text: unicodedata.normalize("NFKD", text),
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_nobody_sees_changes_no_check(script: str, disguise: str):
    text, other = SCRIPTS[script]
    disguised = DISGUISES[disguise](text)
    ngram = NearDuplicatesConfig().ngram
    assert shingles(_row(disguised), ngram).tolist() == shingles(_row(text), ngram).tolist()
    index = build_index([("item", [text])], DecontaminateConfig(files=["x"], ngram=5, min_words=5))
    assert index.match(_row(disguised)) == index.match(_row(text)) == "item"
    assert index.match(_row(other)) is index.match(_row(DISGUISES[disguise](other))) is None
    assert count(disguised) == count(text)
    assert features("", disguised) == features("", text)
    import pyarrow as pa

    table = pa.table({
        "id": ["a", "b", "c"], "prompt": [text, disguised, other], "completion": [""] * 3, "score": [1, 1, 1]
    })  # fmt: skip
    first, second, third = ratings_of(table).texts
    assert first == second != third


@pytest.mark.parametrize("script", SCRIPTS)
def test_different_texts_stay_different(script: str):
    one, other = SCRIPTS[script]
    ngram = NearDuplicatesConfig().ngram
    assert not is_similar(shingles(_row(one), ngram), shingles(_row(other), ngram), 0.3)
    assert comparable(one) != comparable(other)
    assert tells(one, one) and tells(_inside(one, "\u200b"), one)
    assert not tells(other, one)


@pytest.mark.parametrize("script", SCRIPTS)
def test_word_counts_are_those_of_words(script: str):
    text = SCRIPTS[script][0]
    spaced = len(text.split())
    if script in ("Thai", "Lao", "Khmer", "Chinese", "Japanese", "Burmese"):
        assert len(text) / 6 <= count(text) <= len(text) / 1.5
    else:
        assert spaced <= count(text) <= spaced + 2


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("most", [3, 7])
def test_long_texts_are_cut_without_loss_and_never_before_a_mark(script: str, most: int):
    text = " ".join([SCRIPTS[script][0]] * 3)
    pieces = segment(text, most)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < count(piece) <= most for piece in pieces)
    assert not any(unicodedata.category(piece[0])[0] == "M" for piece in pieces)


def test_vowel_signs_that_may_be_left_out_make_no_difference():
    bare = "يقفز الثعلب السريع فوق الكلب الكسول كل صباح"
    assert comparable(SCRIPTS["Arabic"][0]) == comparable(bare) == comparable(bare.replace("ق", "قـ"))
    assert comparable("שָׁלוֹם") == comparable("שלום")
    assert comparable("آب") != comparable("اب")


@pytest.mark.parametrize(
    "text",
    [
        "Один. Два.",
        "一。二。",
        "एक। दो।",
        "ایک۔ دو۔",
        "አንድ። ሁለት።",
        "ერთი. ორი.",
        "واحد؟ اثنان.",
        "မင်း။ ငါ။",
        "一！」二。",
    ],
)
def test_sentences_end_at_the_stops_of_their_script(text: str):
    assert len(sentences(text)) == 2


def test_wrapped_lines_hold_one_sentence_and_abbreviations_end_none():
    assert sentences("It was\nlate. We left, etc. and so on.\n\nNew") == [
        "It was\nlate.", "We left, etc. and so on.", "New",
    ]  # fmt: skip


@pytest.mark.parametrize("unseen", ["\u200b", "\ufeff", "\u2060"])
def test_task_types_are_told_through_invisible_characters(unseen: str):
    options = "Which?\nA) x\nB) y\nC) z\nD) w"
    assert detect_task_type(_inside(options, unseen), f"{unseen}B") == "mcq"
    assert detect_task_type(f"True{unseen} or False: 水", f"{unseen}True") == "tfq"
    assert detect_task_type("Ｗhich?\nＡ） x\nＢ） y\nＣ） z", "Ｂ） y") == "mcq"


@pytest.mark.parametrize("script", SCRIPTS)
def test_only_a_text_without_its_stop_is_cut_off(script: str):
    stop = {"Hindi": "।", "Bengali": "।", "Chinese": "。", "Japanese": "。", "Amharic": "።", "Burmese": "။",
            "Khmer": "។", "Thai": "", "Lao": "", "Arabic": "؟"}.get(script, ".")  # fmt: skip
    assert features("", SCRIPTS[script][0] + stop)["truncated"] == 0
    assert features("", SCRIPTS[script][0] + stop)["untidy"] == 0
