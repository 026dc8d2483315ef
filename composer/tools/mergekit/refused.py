"""refused: what a mergekit configuration may say that no composition is, each with the reason."""

from collections.abc import Iterator

from layerloom.composer.errors import quoted
from layerloom.composer.family.names import nearest

from .configuration import Configuration, Reference

METHODS = {
    "task_arithmetic": "mergekit adds differences from the base to it, which rounds elsewhere than a weighted sum of "
    "models; write it as linear, with the base among the models at the weight that the others leave",
    "slerp": "it goes along a sphere: the weights are others for every tensor",
    "nuslerp": "it goes along a sphere: the weights are others for every tensor or row",
    "multislerp": "it averages on a sphere: the weights are others for every tensor",
    "karcher": "it averages on a sphere: the weights are others for every tensor",
    "ties": "it leaves out changes that are small or of the other sign, number by number",
    "dare_ties": "it drops changes at random",
    "dare_linear": "it drops changes at random",
    "della": "it drops changes at random",
    "della_linear": "it drops changes at random",
    "breadcrumbs": "it leaves out the smallest and the largest changes, number by number",
    "breadcrumbs_ties": "it leaves out the smallest and the largest changes, number by number",
    "model_stock": "its weights come from the angles between the models, tensor by tensor",
    "arcee_fusion": "it takes the changes that matter most, number by number",
    "nearswap": "its weights depend on how near two numbers are, number by number",
    "sce": "its weights come from how much the changes vary, tensor by tensor",
    "ram": "its weights depend on which numbers have changed",
    "ramplus_tl": "its weights depend on which numbers have changed",
}
TAKEN = ("linear", "passthrough")
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


def refusals(config: Configuration) -> Iterator[str]:
    """Why a configuration is no composition, judged by all that is said once for the whole."""
    method = config.merge_method
    if method in METHODS:
        yield (
            f"merge_method {method}: {METHODS[method]}. A composition is a sum of models with fixed weights: "
            f"{' and '.join(TAKEN)} can be imported"
        )
    elif method not in TAKEN:
        close = nearest(method, [*TAKEN, *METHODS])
        yield f"merge_method: there is no {quoted(method)}{f' (did you mean {close!r}?)' if close else ''}"
    for key in ("dtype", "out_dtype"):
        value = getattr(config, key)
        if value is not None and value.removeprefix("torch.") not in DTYPES:
            yield f"{key}: {quoted(value)} is none of {', '.join(DTYPES)}"
    for name in config.modules or ():
        if name != "default":
            yield f"modules.{quoted(name)[1:-1]}: only language models, whose one module is called default"
    key, source = "tokenizer_source", config.tokenizer_source
    if config.tokenizer is not None:
        key, source = "tokenizer.source", config.tokenizer.source
        for part in ("tokens", "pad_to_multiple_of"):
            if getattr(config.tokenizer, part):
                yield f"tokenizer.{part}: a composition has the base's tokens, and its embeddings as they are"
    if source is not None and str(source) == "union":
        yield f"{key}: union makes a vocabulary of its own; a composition has the base's (source: base)"
    for reference in references(config):
        if reference.override_architecture is not None:
            yield f"{quoted(reference)}: override_architecture: a composition has the architecture of its config.json"


def references(config: Configuration) -> list[Reference]:
    """Every model that layers are taken from, in the order of the file."""
    inputs = [item.model for part in config.parts for item in part.models or ()]
    sources = [source.model for part in config.parts for item in part.slices or () for source in item.sources]
    return list(dict.fromkeys([*inputs, *sources]))
