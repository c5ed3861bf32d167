"""The articles that this repository settles: the one list of numbers, slugs and titles."""

from dataclasses import dataclass

from foredraft.errors import unknown


@dataclass(frozen=True, slots=True)
class Article:
    """One article; its slug is its name in every file, section, stage and command."""

    number: int
    slug: str
    title: str

    @property
    def stem(self) -> str:
        """The file name of its notebook without the ending, such as `01_sampling`."""
        return f"{self.number:02d}_{self.slug}"


ARTICLES = (
    Article(1, "sampling", "From logits to a token"),
    Article(2, "speculative_decoding", "Speculative decoding"),
    Article(3, "layer_skipping", "A Transformer that drafts for itself"),
    Article(4, "self_speculation", "Self-speculative decoding with a searched plan"),
    Article(5, "confidence_gating", "Gating on the target's confidence"),
    Article(6, "llava_sft", "Teaching a vision-language model to write tables"),
    Article(7, "bert", "BERT from scratch, number for number"),
    Article(8, "vector_add", "Triton, from vector addition to the kernels of decoding"),
)


def article(slug: str) -> Article:
    """The article of a slug; ValueError, with the nearest one, if there is none."""
    found = next((each for each in ARTICLES if each.slug == slug), None)
    if found is None:
        raise unknown("article", slug, (each.slug for each in ARTICLES))
    return found
