"""The names of the rewriting methods."""

# Methods that only edit the page, under any rewriter.
MODEL_FREE_METHODS = ("original", "paste_key_point", "repeat_key_point")
# Methods that the offline rewriter has an edit for; with a model they are prompts.
OFFLINE_METHODS = ("keyword_stuffing", "easy_to_understand", "key_point")
MODEL_METHODS = (
    "unique_words",
    "fluency",
    "authoritative",
    "technical_terms",
    "cite_sources",
    "quotation",
    "statistics",
    "rules",
)
METHODS = (*MODEL_FREE_METHODS, *OFFLINE_METHODS, *MODEL_METHODS)
