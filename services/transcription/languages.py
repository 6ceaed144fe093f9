"""Whisper's languages: codes, and the English names used by OpenAI's verbose responses.

Source: the language tokens in openai/whisper, tokenizer.py.
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


def language_code(language: str, supported: Iterable[str]) -> str:
    """Return the engine's code for `de`, `de-AT`, `German` or `german`.

    Raises InvalidRequest if it is not among `supported`, the engine's codes.
    """
    normalized = language.strip().lower().replace("_", "-")
    code = _CODES.get(normalized, normalized.partition("-")[0])
    code = _CODES.get(code, code)
    codes = set(supported)
    if code in codes:
        return code
    if codes == {"en"}:
        message = f"This model supports English only; language is {language!r:.40}. Send en, or omit it."
    else:
        message = (
            f"Unsupported language {language!r:.40}. Send an ISO 639-1 code such as en: {', '.join(sorted(codes))}."
        )
    raise InvalidRequest(message, param="language")
