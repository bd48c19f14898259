"""Words and constructions that nobody should have to read, each with what to write. Knows nothing of files."""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.prose import CODE, Kind, Passage, passages_of_source, words_of

#: A sentence of README or a tutorial with more words has to be read twice.
MOST_WORDS = 30

_EVERY = (
    "batch|call|class|command|core|epoch|file|host|image|key|layer|lease|line|machine|micro-batch|model|node|page|"
    "parameter|process|processor|run|sample|server|shard|slice|step|task|test|turn|user|value|worker"
)
_SOFTWARE = (
    f"{CODE}|bench|checkpoint|client|command|coordinator|doctor|help|ledger|lockstep|log|notebook|process|program|"
    "receipt|run|script|server|shard|summary|supervisor|system|worker"
)


@dataclass(frozen=True)
class Rule:
    """A pattern in a sentence, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str
    #: Headings and cells are often no sentences, and some words are right in them.
    whole_sentences_only: bool = False


def _rule(pattern: str, instead: str, *, whole_sentences_only: bool = False, flags: int = re.IGNORECASE) -> Rule:
    return Rule(re.compile(pattern, flags), instead, whole_sentences_only)


#: Of all that is read, the code too.
_EVERYWHERE = (
    _rule(r"\bmend(?:s|ed|ing)?\b", "fix"),
    _rule(r"\b(?:go|goes|going|gone|went) on with\b", "resume, continue"),
    _rule(r"\bone's own\b", "your own"),
    _rule(r"\bbeside\b", "next to"),
    _rule(r"\banew\b", "again"),
    _rule(r"\b(?:comes|came) to(?! (?:an end|a stop|a halt|rest|mind)\b)", "results in, is; or who sends what to whom"),
    _rule(r"\bstands\b(?! for\b)|\bstood\b", "is"),
    _rule(r"\b(?:laid|lay|lays|laying) over\b", "override"),
    _rule(r"\b(?:leave|leaves|leaving|left) away\b", "remove, leave out"),
    _rule(
        rf"\b(?:an?|one) [\w-]+ an? (?:{_EVERY})\b(?! (?:that|who|which|is|was|has|can|server)\b)",
        "one worker per core",
    ),
    _rule(
        r"(?<!there )\b(?:is|are|was|were) no "
        r"(?!(?:longer|more|less|fewer|different|better|worse|one|matter (?:how|what|which|who)|\w+er than)\b)",
        "is not a …",
    ),
    # Rule 1: no "Who does X has Y". A question may begin like this, and so may a heading.
    _rule(r"^(?:Who|Whoever|Whose|Whom)\b(?!.*\?)", "If you …, To …", whole_sentences_only=True, flags=0),
    _rule(r"^What\b(?! you\b)(?!.*\?)", "a sentence that begins with its subject", whole_sentences_only=True, flags=0),
    # Rule 7.
    _rule(r"^Where\b(?!.*\?)", "If …, When …", whole_sentences_only=True, flags=0),
    # Rule 4.
    _rule(r"(?<!one)'s own(?=[,.;:)?!]|$)", "repeat the noun"),
    _rule(r"\bof [\w-]+(?:'s|s')(?=[,.;:)?!]|$)", "of X, without 's"),
    _rule(r"\bothers'(?=[,.;:)?!]|$| (?:and|or|with|by|in|is|are)\b)", "repeat the noun"),
)

#: Of pages and help.
RULES = (
    *_EVERYWHERE,
    # Rule 2.
    _rule(r"\btells?\b(?! (?:[\w ]+ )?apart\b)", "reports, prints, shows"),
    _rule(r"\b(?:is|are|was|were|be|been|being) told\b|\btold (?:by|of)\b", "is shown, is reported"),
    _rule(
        rf"\b(?:{_SOFTWARE})s? (?:also |then |itself )?(?:says?|said)\b|\b(?:and|that|which|it) says\b"
        r"|\b(?:is|are|was|were|be) said\b",
        "reports, prints, warns",
    ),
)

#: A person has no other name.
_PERSON = "".join(rf"(?<!\b{word} )" for word in ("user", "person", "people", "reader", "student", "author", "those"))

#: Of docstrings, comments and messages of the code: there, processes and objects have names.
RULES_OF_CODE = (
    *_EVERYWHERE,
    _rule(r"\bwhat (?:is|are|was|were|has|have|had|of)\b(?!.*\?)", "the name of the thing"),
    _rule(rf"{_PERSON}\bwho\b(?!.*\?)|\b(?:nobody|somebody|anybody)\b", "the process, no worker, the caller"),
    _rule(r"\b(?:whoever|whomever)\b", "the process that, any"),
    _rule(r"\bat hand\b", "now, current, the name of the thing"),
    _rule(r"\bthere (?:is|are|was|were) none\b", "no standby, None if there is no standby"),
    _rule(r"\bheirs?\b", "successor"),
)

#: Rule 13.
BEGINNING = _rule(
    r"^(?:What|Which|Whether|How|Who|Whoever|Whose|Where|When)\b", "a noun phrase, or an imperative", flags=0
)


def complaints(passage: Passage) -> Iterator[str]:
    """Yield what is wrong with the words of a passage, each with the sentence and what to write."""
    for sentence in passage.sentences():
        is_whole = passage.kind is Kind.TEXT and sentence.endswith((".", ":", "!"))
        yield from _complaints(passage, sentence, RULES, is_whole=is_whole)


def _complaints(passage: Passage, sentence: str, rules: Iterable[Rule], *, is_whole: bool) -> Iterator[str]:
    for rule in rules:
        if rule.whole_sentences_only and not is_whole:
            continue
        if found := rule.pattern.search(sentence.replace("\u2019", "'")):
            yield f"{passage.place}: {found[0].strip()!r}: write {rule.instead!r} in: {sentence}"


def colons(passage: Passage) -> Iterator[str]:
    """Yield the passage if it has more than one colon: each of them makes the rest of a sentence wait (rule 5)."""
    if (count := len(re.findall(r":(?=\s|$)", passage.text))) > 1:
        yield f"{passage.place}: {count} colons, expected at most 1: {passage.text}"


def long_sentences(passage: Passage) -> Iterator[str]:
    """Yield the sentences that are too long to be read once."""
    for sentence in passage.sentences():
        if (count := len(words_of(sentence))) > MOST_WORDS:
            yield f"{passage.place}: {count} words, expected at most {MOST_WORDS}: {sentence}"


def complaints_of_code(passage: Passage) -> Iterator[str]:
    """Yield what is wrong with the words of a docstring, a comment or a message of the code."""
    for number, sentence in enumerate(passage.sentences()):
        is_first = passage.kind is Kind.DOCSTRING and number == 0
        rules = (BEGINNING, *RULES_OF_CODE) if is_first else RULES_OF_CODE
        yield from _complaints(passage, sentence, rules, is_whole=not is_first and sentence.endswith("."))


def complaints_of_source(text: str, name: str) -> list[str]:
    """Return what is wrong with the words of a module of Python."""
    return [complaint for passage in passages_of_source(text, name) for complaint in complaints_of_code(passage)]


def main(folders: list[str]) -> None:
    """Print the complaints about the modules in the folders, and how many there are."""
    paths = [path for each in map(Path, folders) for path in (sorted(each.rglob("*.py")) if each.is_dir() else [each])]
    found = [text for path in paths for text in complaints_of_source(path.read_text(encoding="utf-8"), path.as_posix())]
    print(*found, f"{len(found)} in {len(paths)} modules", sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
