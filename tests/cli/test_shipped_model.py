# SPDX-License-Identifier: Apache-2.0
"""The shipped model: it predicts text it has never seen far better than chance, and it fits its card."""
import os

from support import MODEL, main, ok_json

SHIPPED = os.path.join(MODEL, "..", "jacobean-5m")
# The beginning of Ruth (King James Version, public domain), a book held out from training.
RUTH = """Now it came to pass in the days when the judges ruled, that there was a famine in the land. And a certain man of Bethlehemjudah went to sojourn in the country of Moab, he, and his wife, and his two sons.
And the name of the man was Elimelech, and the name of his wife Naomi, and the name of his two sons Mahlon and Chilion, Ephrathites of Bethlehemjudah. And they came into the country of Moab, and continued there.
And Elimelech Naomi's husband died; and she was left, and her two sons.
And they took them wives of the women of Moab; the name of the one was Orpah, and the name of the other Ruth: and they dwelled there about ten years.
"""


def test_predicts(folder):
    told = ok_json("perplexity", "--model", SHIPPED, "--json", "--quiet", "-", stdin=RUTH)
    shuffled = " ".join(sorted(RUTH.split()))
    noise = ok_json("perplexity", "--model", SHIPPED, "--json", "--quiet", "-", stdin=shuffled)
    print("     bits per byte:", told["bits_per_byte"], "of its words in alphabetical order:", noise["bits_per_byte"])
    assert told["bits_per_byte"] < 1.6, told
    assert noise["bits_per_byte"] > told["bits_per_byte"] + 0.8, noise


def test_int8_cache(folder):
    # In vectors, which round nothing but the formats: half of a 254th of a row's largest number costs next to nothing.
    arguments = ["perplexity", "--model", SHIPPED, "--arch", "simd", "--json", "--quiet", "-"]
    exact, rounded = (ok_json(*arguments, "--cache", cache, stdin=RUTH)["perplexity"] for cache in ("f32", "int8"))
    print("     perplexity, cache f32:", exact, "int8:", rounded)
    assert abs(rounded / exact - 1) < 0.003, (exact, rounded)


def test_generates(folder):
    arguments = ["generate", "--model", SHIPPED, "--prompt", "In the beginning God created the", "--max-new-tokens", 12, "--json"]
    told = ok_json(*arguments)
    assert told["text"].strip() and told["weights"] == "bf16", told
    assert len(told["text"].split()) >= 4 and told["text"].isascii(), told


def test_card(folder):
    told = ok_json("inspect", "--model", SHIPPED, "--json")
    assert told["parameters"] == 5509452, told
    with open(os.path.join(SHIPPED, "README.md"), encoding="utf-8") as card:
        assert "5,509,452" in card.read()
    assert os.path.getsize(os.path.join(SHIPPED, "model.safetensors")) < 12_000_000


main()
