"""The languages of Whisper by code, and by the English names that OpenAI's verbose answers use.

Source: the model's own list of language tokens (openai/whisper, tokenizer).
"""

from collections.abc import Iterable

from kit.errors import InvalidRequest

_TABLE = """
af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, ba bashkir, be belarusian, bg bulgarian, bn bengali,
bo tibetan, br breton, bs bosnian, ca catalan, cs czech, cy welsh, da danish, de german, el greek, en english,
es spanish, et estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, gl galician, gu gujarati, ha hausa,
haw hawaiian, he hebrew, hi hindi, hr croatian, ht haitian creole, hu hungarian, hy armenian, id indonesian,
is icelandic, it italian, ja japanese, jw javanese, ka georgian, kk kazakh, km khmer, kn kannada, ko korean, la latin,
lb luxembourgish, ln lingala, lo lao, lt lithuanian, lv latvian, mg malagasy, mi maori, mk macedonian, ml malayalam,
mn mongolian, mr marathi, ms malay, mt maltese, my myanmar, ne nepali, nl dutch, nn nynorsk, no norwegian, oc occitan,
pa punjabi, pl polish, ps pashto, pt portuguese, ro romanian, ru russian, sa sanskrit, sd sindhi, si sinhala,
sk slovak, sl slovenian, sn shona, so somali, sq albanian, sr serbian, su sundanese, sv swedish, sw swahili, ta tamil,
te telugu, tg tajik, th thai, tk turkmen, tl tagalog, tr turkish, tt tatar, uk ukrainian, ur urdu, uz uzbek,
vi vietnamese, yi yiddish, yo yoruba, yue cantonese, zh chinese
"""
NAMES: dict[str, str] = dict(entry.split(maxsplit=1) for entry in " ".join(_TABLE.split()).split(", "))
_CODES = {name: code for code, name in NAMES.items()} | {"javanese": "jw", "jv": "jw", "nb": "no"}


def code_of(language: str, served: Iterable[str]) -> str:
    """The code that the engine takes for `de`, `de-AT`, `German` or `german`.

    Raises InvalidRequest for a language that is not among `served`, the engine's codes.
    """
    wanted = language.strip().lower().replace("_", "-")
    code = _CODES.get(wanted, wanted.partition("-")[0])
    code = _CODES.get(code, code)
    known = set(served)
    if code in known:
        return code
    if known == {"en"}:
        message = f"This model hears English only; language is {language!r:.40}. Send en, or leave it out."
    else:
        message = (
            f"language is {language!r:.40}, which is no language this model knows. "
            f"Send an ISO 639-1 code such as en: {', '.join(sorted(known))}."
        )
    raise InvalidRequest(message, param="language")


def name_of(code: str) -> str:
    """The English name for a code, or the code itself where a newer model knows more."""
    return NAMES.get(code, code)
