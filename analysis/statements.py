# %% [markdown]
# # The statements
#
# Every statement of the paper, and those that this companion adds, checked in three independent ways:
#
# - **error**: the largest difference from the definition in float64, on random inputs, relative to the largest value;
#   it has to stay below a bound derived from the number of roundings;
# - **exact**: equality in rational arithmetic, on random inputs with many ties;
# - **proved**: an SMT solver or a computer algebra system shows, instance by instance, that the statement holds for
#   every real input.
#
# A number in the last column refers to the paper's list of errata.

# %%
import re

import frame
import pandas as pd

statements, constructors, maxima = frame.theorems()

# %% [markdown]
# ## The table

# %%
YES_NO = {True: "yes", False: "no"}
SIGNS = {
    r"ceil\(log2 n\)": "⌈log₂ n⌉",
    r"ceil\(log3\(n - 2\)\)": "⌈log₃(n − 2)⌉",
    r"log2 n": "log₂ n",
    r">=": "≥",
    r"(\d)\.\.(\d)": r"\1, …, \2",
    r" \. ": " ∘ ",
    r" - ": " − ",
    r"^max\b": "maximum",
    r"^dot\b": "dot product",
}


def typeset(text: str) -> str:
    """A statement with mathematical signs in place of their ASCII spelling."""
    for plain, sign in SIGNS.items():
        text = re.sub(plain, sign, text)
    return text[0].upper() + text[1:] if re.match(r"[a-z]{3}", text) else text


table = pd.DataFrame(
    {
        "item": statements["item"],
        "statement": statements["statement"].map(typeset),
        "instances": statements["instances"],
        "error": ["–" if pd.isna(e) else f"{e:.1e}" for e in statements["max_error"]],
        "exact": [YES_NO.get(value, "–") for value in statements["exact"]],
        "proved": [YES_NO.get(value, "–") for value in statements["proved"]],
        "holds": [YES_NO[bool(value)] for value in statements["holds"]],
        "erratum": [text.split(":")[0] for text in statements["erratum"].fillna("")],
    }
)
frame.write_table(table, "table_statements")
table

# %% [markdown]
# ## The layers
#
# The layers that the theorems construct, under the names that Keras gives them. Depth counts activation layers.

# %%
layers = constructors.drop(columns="activations").assign(
    widths=[" ".join(map(str, widths)) for widths in constructors["widths"]],
    relu_count=constructors["relu_count"].astype("Int64"),
)
frame.write_table(layers, "table_layers")
layers

# %% [markdown]
# ## Maxima in few layers

# %%
frame.write_table(maxima, "table_maxima")
maxima

# %%
errata = {text.split(":")[0] for text in statements["erratum"].dropna()}
proved_for = sorted({n for numbers in statements.get("proved_for", ()) if isinstance(numbers, list) for n in numbers})
window = constructors[constructors["instance"].str.startswith("window 3, stride 2")].set_index("name")
exact, proved = (statements[column].astype("boolean") for column in ("exact", "proved"))
frame.write_numbers(
    {
        "statements": len(statements),
        "hold": int(statements["holds"].sum()),
        "exact": int(exact.fillna(False).sum()),
        "proved": int(proved.fillna(False).sum()),
        "instances": int(statements["instances"].sum()),
        "largest_error": float(f"{statements['max_error'].max():.3g}"),
        "layers": len(constructors),
        "errata": len(errata),
        "proved_maxima": proved_for,
        "maxima": maxima.to_dict("records"),
        "window_of_nine": {
            "tree": {key: int(window.loc["MaxPooling2D", key]) for key in ("depth", "relu_count")},
            "shallow": {key: int(window.loc["MaxPooling2D, shallow", key]) for key in ("depth", "relu_count")},
        },
    },
    "statements",
)
