"""Licence and base model from a model card."""

import pytest

from registry.models.model_card import MAX_BYTES, Card, parse_card


@pytest.mark.parametrize(
    ("text", "card"),
    [
        (
            "---\nlicense: apache-2.0\nbase_model: org/base\n---\n# x",
            Card(license="apache-2.0", base_model=("org/base",)),
        ),
        (
            "\ufeff---\r\nlicense: [mit]\r\nbase_model:\r\n- a/b\r\n- c/d\r\n---\r\n",
            Card(license="mit", base_model=("a/b", "c/d")),
        ),
        (
            "---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n---",
            Card(license="llama3.2", license_link="LICENSE.txt"),
        ),
        ("---\nlicense: other\n---\n", Card(license="other")),
        ("# no front matter\n---\nlicense: mit\n---\n", Card()),
        ("", Card()),
        ("---\n: [\n---\n", Card()),
        ("---\n- a list\n---\n", Card()),
        ("---\nlicense: {a: b}\nbase_model: 7\n---\n", Card()),
        (f"---\nlicense: {'x' * 1000}\n---\n", Card()),
        (f"---\nx: {'y' * MAX_BYTES}\nlicense: mit\n---\n", Card()),
        ("---\nlicense: !!python/object/apply:os.system [true]\n---\n", Card()),
    ],
)  # fmt: skip
def test_valid_fields_of_a_card_are_kept(text: str, card: Card) -> None:
    assert parse_card(text.encode()) == card
