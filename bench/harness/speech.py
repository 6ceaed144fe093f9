"""Speech recordings with known transcripts: random sentences spoken by flite's voices, the same in every run.

Synthesised speech is clearer than a meeting, so word error rates are only comparable with each other.
"""

import random
import re
import shutil
import subprocess
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VOICES = ("slt", "awb", "rms")
# Words per minute of these voices, pauses included.
WORDS_PER_MINUTE = 165

_WHO = (
    "the committee", "my older sister", "a group of engineers", "the captain of the ship", "our new neighbor",
    "the museum", "every visitor", "the people in the village", "a young doctor", "the company", "her best friend",
    "the train conductor", "the whole class", "a retired teacher", "the city council", "the weather service",
)  # fmt: skip
_DID = (
    "decided to repair", "wrote a long letter about", "took a photograph of", "asked many questions about",
    "finally understood", "carefully measured", "told a story about", "planned to replace", "walked slowly past",
    "was surprised by", "spent several hours cleaning", "could not remember", "made a drawing of", "borrowed money for",
    "gave a short speech about", "was looking forward to",
)  # fmt: skip
_WHAT = (
    "the old bridge over the river", "a small garden behind the library", "the history of the railway",
    "the broken window in the kitchen", "a collection of rare coins", "the new school building",
    "the results of the experiment", "an unusual kind of bird", "the price of bread and butter",
    "the lighthouse on the northern coast", "a map of the mountain trails", "the music for the summer festival",
    "the engine of the fishing boat", "the recipe for apple cake", "the first computer in the office",
    "a letter from the government",
)  # fmt: skip
_WHEN = (
    "before the sun came up", "during the long winter", "after dinner on Friday", "while it was raining outside",
    "in the middle of the night", "early in the spring", "without telling anyone", "as soon as the shops had closed",
    "with a great deal of patience", "for the third time this year", "because nobody else wanted to",
    "when the children were asleep", "in spite of the bad weather", "on the last day of the holiday",
    "at the end of a difficult week", "under the light of a single lamp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recording:
    """A WAV file, its transcript and its length."""

    path: Path
    text: str
    seconds: float


def recordings(count: int, seconds: float, folder: Path) -> list[Recording]:
    """Return `count` recordings of about the given length, made in `folder` unless they exist.

    Raises RuntimeError if flite is not installed.
    """
    flite = shutil.which("flite")
    if flite is None:
        raise RuntimeError("flite, which speaks the texts of this bench, is not installed: apt-get install flite")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        text = _text(number, round(seconds / 60 * WORDS_PER_MINUTE))
        path = folder / f"speech-{number}-{seconds:g}.wav"
        if not path.exists():
            part = path.with_suffix(".part")
            script = path.with_suffix(".txt")
            script.write_text(text)
            voice = VOICES[number % len(VOICES)]
            subprocess.run([flite, "-voice", voice, "-f", str(script), "-o", str(part)], check=True)
            part.rename(path)
        with wave.open(str(path)) as reader:
            made.append(Recording(path, text, reader.getnframes() / reader.getframerate()))
    return made


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Return the number of wrong, missing and additional words, and the number of words in the transcript."""
    expected, got = _words(said), _words(heard)
    row = list(range(len(got) + 1))
    for count, word in enumerate(expected, 1):
        last, row[0] = row[0], count
        for at, other in enumerate(got, 1):
            last, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, last + (word != other))
    return row[-1], len(expected)


def _text(seed: int, words: int) -> str:
    dice = random.Random(seed)
    text = ""
    while len(text.split()) < words:
        sentence = " ".join(dice.choice(part) for part in (_WHO, _DID, _WHAT, _WHEN))
        text += sentence[0].upper() + sentence[1:] + ".\n"
    return text


def _words(text: str) -> Sequence[str]:
    return re.findall(r"[a-z']+", text.lower())
