"""The packaged corpus is what it says, and a broken copy is refused with its place."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from emoreg.vectors.corpus import Corpus, Transcript, slug
from emoreg.vectors.wording import name_in

Edit = Callable[[dict], dict | None]

STORIES = "stories/calm.jsonl"
TWINS = "transcripts/dev.jsonl"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.packaged()


@pytest.fixture
def copy(tmp_path: Path, corpus: Corpus) -> Path:
    """A small but whole copy of the packaged corpus, free to break."""
    root = tmp_path / "corpus"
    ignore = shutil.ignore_patterns("__pycache__", "*.py", "*.md")
    shutil.copytree(corpus.root, root, ignore=ignore)
    return root


def edit_line(root: Path, file: str, number: int, edit: Edit) -> None:
    """Change the record on line `number` of a file, counted from 1."""
    path = root / file
    lines = path.read_text(encoding="utf-8").split("\n")
    record = edit(json.loads(lines[number - 1]))
    lines[number - 1] = json.dumps(record, ensure_ascii=False)
    path.write_text("\n".join(lines), encoding="utf-8")


def put(**fields: object) -> Edit:
    return lambda record: record | fields


def drop(field: str) -> Edit:
    return lambda record: {k: v for k, v in record.items() if k != field}


def texts_of(twin: Transcript) -> set[str]:
    replies = (twin.reply_fail, twin.reply_pass, twin.reply_bad)
    return {twin.task, *twin.attempts, *replies}


def test_there_are_twelve_stories_of_each_of_171_emotions(corpus: Corpus) -> None:
    assert len(corpus.emotions()) == 171
    counts = Counter(story.emotion for story in corpus.stories(split="all"))
    assert counts == dict.fromkeys(corpus.emotions(), 12)


def test_the_counts_of_the_other_sets(corpus: Corpus) -> None:
    assert len(corpus.neutral("all")) == 160
    assert len(corpus.transcripts("all")) == 152
    assert len(corpus.transcripts("all", stakes=True)) == 56
    assert len(corpus.retain()) == 80
    sizes = {"dialogues": 144, "masked": 120, "scenarios": 144, "prompts": 180}
    for name, size in sizes.items():
        assert len(corpus.records(name, split="all")) == size
    assert len(corpus.records("dose")) == 18
    assert len(corpus.records("activities")) == 64
    assert len(corpus.records("capability")) == 80


@pytest.mark.parametrize(
    ("split", "topics"),
    [("fit", 8), ("inner_fit", 6), ("inner_test", 2), ("test", 4), ("all", 12)],
)
def test_story_splits_are_made_of_topics(
    corpus: Corpus, split: str, topics: int
) -> None:
    stories = corpus.stories(["calm", "at ease"], split)
    assert len(stories) == 2 * topics
    assert len({story.topic for story in stories}) == topics


def test_story_splits_share_no_text(corpus: Corpus) -> None:
    def texts(split: str) -> set[str]:
        return {story.text for story in corpus.stories(split=split)}

    assert not texts("fit") & texts("test")
    assert not texts("inner_fit") & texts("inner_test")
    assert texts("inner_fit") | texts("inner_test") == texts("fit")
    assert texts("fit") & texts("all"), "the comparison must be able to find a text"


def test_no_text_of_a_test_split_is_in_a_fit_or_train_split(corpus: Corpus) -> None:
    def all_texts(seen: bool) -> set[str]:
        fit, train = ("fit", ("train", "dev")) if seen else ("test", ("test",))
        found = {story.text for story in corpus.stories(split=fit)}
        for neutral in corpus.neutral(fit):
            found |= {m["content"] for m in neutral.messages or ()}
            found |= {neutral.text} if neutral.text else set()
        for split in train:
            for stakes in (False, True):
                for twin in corpus.transcripts(split, stakes=stakes):
                    found |= texts_of(twin)
        for name in ("dialogues", "masked"):
            for record in corpus.records(name, split=fit):
                found |= {m["content"] for m in record.get("messages", ())}
                found |= {record["text"]} if "text" in record else set()
        return found

    assert len(all_texts(True)) > 2000
    assert not all_texts(True) & all_texts(False)


def test_transcripts_hold_out_wordings_of_feedback(corpus: Corpus) -> None:
    styles = {
        split: {twin.style for twin in corpus.transcripts(split)}
        for split in ("train", "dev", "test")
    }
    assert not styles["train"] & styles["test"]


def test_stories_do_not_name_their_emotion(corpus: Corpus) -> None:
    stories = corpus.stories(split="all")
    assert not [s.source for s in stories if name_in(s.text, s.emotion)]


@pytest.mark.parametrize(
    ("text", "emotion", "named"),
    [
        ("A calm evening.", "calm", "calm"),
        ("He grew desperately thin.", "desperate", "desperately"),
        ("In desperation she rang.", "desperate", "desperation"),
        ("He worries a lot.", "worried", "worries"),
        ("Do not worry.", "worried", "worry"),
        ("Panic rose in him.", "panicked", "Panic"),
        ("She was at ease there.", "at ease", "at ease"),
        ("An easy walk.", "at ease", None),
        ("It was made of tin.", "mad", None),
        ("The contents of the box.", "content", "contents"),
        ("A thing of hope.", "hopeful", "hope"),
        ("'Desperate times,' she said.", "desperate", "Desperate"),
        ("She called it 'calm'.", "calm", "calm"),
        ("An o'calm evening.", "calm", None),
    ],
)
def test_names_are_found_as_whole_words(
    text: str, emotion: str, named: str | None
) -> None:
    assert name_in(text, emotion) == named


def test_twins_differ_in_the_feedback_alone(corpus: Corpus) -> None:
    for stakes in (False, True):
        for twin in corpus.transcripts("all", stakes=stakes):
            for rounds in range(1, len(twin.attempts)):
                fail, passed = twin.conversations(rounds)
                different = [
                    index
                    for index, (a, b) in enumerate(
                        zip(fail.messages, passed.messages, strict=True)
                    )
                    if a != b
                ]
                assert different == [2 + 2 * index for index in range(rounds)]


def test_feedback_of_twins_has_the_same_length_within_a_third(corpus: Corpus) -> None:
    twins = corpus.transcripts("all")
    ratios = [
        len(f) / len(p)
        for twin in twins
        for f, p in zip(twin.fail, twin.pass_, strict=True)
    ]
    assert 0.97 < sum(ratios) / len(ratios) < 1.03


def test_a_conversation_alternates_and_carries_its_outcomes(corpus: Corpus) -> None:
    twin = corpus.transcripts("train")[0]
    whole = twin.conversation("fail")
    assert [m["role"] for m in whole.messages] == ["user", "assistant"] * 4
    assert whole.failed == (None, 1.0, 1.0, 1.0)
    assert whole.messages[-1]["content"] == twin.reply_fail
    assert twin.conversation("pass").messages[-1]["content"] == twin.reply_pass
    cut = twin.conversation("pass", 2)
    assert cut.failed == (None, 0.0, 0.0)
    assert cut.messages[-1]["content"] == twin.attempts[2]
    assert cut.pair == whole.pair == twin.id
    assert cut.id != whole.id


@pytest.mark.parametrize("rounds", [0, 4, -1])
def test_impossible_rounds_are_refused(corpus: Corpus, rounds: int) -> None:
    with pytest.raises(ValueError, match=r"`rounds` must be in \[1, 3\]"):
        corpus.transcripts("train")[0].conversation("fail", rounds)


def test_roles_keep_audit_emotions_out_of_losses(corpus: Corpus) -> None:
    families = corpus.roles().families
    named = [emotion for family in families.values() for emotion in family]
    assert len(named) == len(set(named)) == 21
    assert {*named, *corpus.roles().core} <= set(corpus.emotions())
    assert families["loss distress"][0] == "desperate"
    assert "serene" in families["audit composure"]


def test_unknown_splits_name_the_legal_ones(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="`fit`, `inner_fit`, `inner_test`, `test`"):
        corpus.stories(split="train")
    with pytest.raises(ValueError, match="`fit`, `test`, `all`, found `dev`"):
        corpus.neutral("dev")
    with pytest.raises(ValueError, match="`train`, `dev`, `test`, `all`, found `fit`"):
        corpus.transcripts("fit")
    with pytest.raises(ValueError, match="`dev`, `test`, `all`, found `None`"):
        corpus.records("prompts")
    with pytest.raises(ValueError, match="`split` must be left out for `dose`"):
        corpus.records("dose", split="test")
    with pytest.raises(ValueError, match="`name` must be one of `dialogues`"):
        corpus.records("songs")


def test_unknown_emotions_get_close_matches(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="Did you mean `desperate`"):
        corpus.stories(["despairate"])


def test_the_hash_sees_names_and_bytes(copy: Path) -> None:
    before = Corpus(copy).hash()
    assert before == Corpus.packaged().hash()
    assert re.fullmatch("[0-9a-f]{64}", before)
    (copy / "notes.txt").write_text("not data")
    assert Corpus(copy).hash() == before
    (copy / "retain.jsonl").write_text("")
    assert Corpus(copy).hash() != before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("topic"), r":3: the record must have a field `topic`"),
        (put(text=7), r":3: `text` must be a non-empty text, found int 7"),
        (put(text=" "), r":3: `text` must be a non-empty text"),
        (put(emotion="clam"), r":3: `emotion` must be in .*Did you mean `calm`"),
        (put(emotion="serene"), r":3: `emotion` must be the one its file is named"),
        (put(topic="t13"), r":3: `topic` must be one of t01 to t12, found `t13`"),
        (put(text="He was calm."), r":3: a story must not name its emotion `calm`"),
        (lambda record: [record], r":3: each line must be one JSON object"),
    ],
)
def test_a_broken_story_is_refused_with_its_line(
    copy: Path, edit: Edit, message: str
) -> None:
    edit_line(copy, STORIES, 3, edit)
    with pytest.raises(ValueError, match=re.escape(STORIES) + message):
        Corpus(copy).stories()


def test_json_errors_name_line_and_column(copy: Path) -> None:
    path = copy / STORIES
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[4] = lines[4][:-1]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"stories/calm\.jsonl:5: .* at column \d+"):
        Corpus(copy).stories()


def test_the_same_story_twice_is_refused_with_both_places(copy: Path) -> None:
    first = json.loads((copy / STORIES).read_text(encoding="utf-8").split("\n")[0])
    edit_line(copy, "stories/eager.jsonl", 2, put(text=first["text"].upper()))
    message = r"stories/eager\.jsonl:2: .*the text of stories/calm\.jsonl:1 again"
    with pytest.raises(ValueError, match=message):
        Corpus(copy).stories()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(**{"pass": ["ok"]}), r":2: .*3 in `attempts`, 3 in `fail`, 1 in `pass`"),
        (put(fail="no"), r":2: `fail` must be a non-empty list of texts, found str"),
        (put(attempts=[]), r":2: `attempts` must be a non-empty list of texts"),
        (put(split="tests"), r":2: `split` must be one of `train`, `dev`, `test`"),
        (drop("reply_bad"), r":2: the record must have a field `reply_bad`"),
        (lambda r: r | {"fail": r["pass"]}, r":2: .* the same text in round 1"),
    ],
)
def test_a_broken_twin_is_refused_with_its_line(
    copy: Path, edit: Edit, message: str
) -> None:
    edit_line(copy, TWINS, 2, edit)
    with pytest.raises(ValueError, match=re.escape(TWINS) + message):
        Corpus(copy).transcripts("dev")


@pytest.mark.parametrize("name", ["dialogues", "masked_dialogues"])
def test_who_feels_something_must_speak(copy: Path, name: str) -> None:
    if name == "masked_dialogues":
        first = (copy / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()[0]
        row = json.loads(first) | {"felt": "sad", "shown": "calm"}
        lines = [json.dumps(row | {"id": f"md{number}"}) for number in range(3)]
        (copy / f"{name}.jsonl").write_text("\n".join(lines))
    assert Corpus(copy).records(name, split="all")  # control
    edit_line(copy, f"{name}.jsonl", 3, put(speaker="User"))
    message = rf"{name}\.jsonl:3: `speaker` must be .*`User` where .*`user`.*Write"
    with pytest.raises(ValueError, match=message):
        Corpus(copy).records(name, split="all")


def test_repeated_ids_are_refused(copy: Path) -> None:
    edit_line(copy, "neutral.jsonl", 4, put(id="n001"))
    message = r"neutral\.jsonl:4: .*`n001`, which neutral\.jsonl:1 has too"
    with pytest.raises(ValueError, match=message):
        Corpus(copy).neutral()


def test_a_neutral_text_is_a_dialogue_or_prose(copy: Path) -> None:
    edit_line(copy, "neutral.jsonl", 1, drop("messages"))
    with pytest.raises(ValueError, match=r"neutral\.jsonl:1: .* a field `text`"):
        Corpus(copy).neutral()
    edit_line(copy, "neutral.jsonl", 1, put(messages=[{"role": "me"}]))
    with pytest.raises(ValueError, match=r"neutral\.jsonl:1: `messages` must be"):
        Corpus(copy).neutral()
    edit_line(copy, "neutral.jsonl", 1, put(text="x"))
    with pytest.raises(ValueError, match=r"neutral\.jsonl:1: .* found both"):
        Corpus(copy).neutral()


def test_an_empty_split_is_refused(copy: Path) -> None:
    path = copy / STORIES
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(lines[:8]), encoding="utf-8")
    assert Corpus(copy).stories(["calm"], split="fit")
    with pytest.raises(ValueError, match=r"split `test` must have .*`calm`"):
        Corpus(copy).stories(split="test")
    (copy / TWINS).write_text("")
    with pytest.raises(ValueError, match="split `dev` must have transcripts"):
        Corpus(copy).transcripts("dev")


def test_missing_parts_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`path` must be a folder"):
        Corpus(tmp_path / "nowhere")
    (copy / "neutral.jsonl").unlink()
    with pytest.raises(ValueError, match=r"neutral\.jsonl: there must be this"):
        Corpus(copy).neutral()
    shutil.rmtree(copy / "stories")
    with pytest.raises(ValueError, match=r"stories/: the corpus must have files"):
        Corpus(copy).stories()


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], "must hold one object"),
        ({"core": ["clam"]}, "`core` must name .*Did you mean `calm`"),
        ({"core": ["calm"], "loss": {}}, r"`loss\.lower` must be a non-empty list"),
    ],
)
def test_broken_roles_are_refused(copy: Path, roles: object, message: str) -> None:
    (copy / "roles.json").write_text(json.dumps(roles))
    with pytest.raises(ValueError, match=r"roles\.json: " + f".*{message}"):
        Corpus(copy).roles()


def test_an_audit_emotion_must_not_be_one_of_a_loss(copy: Path) -> None:
    roles = json.loads((copy / "roles.json").read_text())
    roles["audit"]["lower"].append("desperate")
    (copy / "roles.json").write_text(json.dumps(roles))
    with pytest.raises(ValueError, match="found `desperate` in both"):
        Corpus(copy).roles()


def test_the_list_of_emotions_is_checked(copy: Path) -> None:
    (copy / "emotions.json").write_text('["calm", "calm"]')
    with pytest.raises(ValueError, match=r"emotions\.json: .*2 of which 1 differ"):
        Corpus(copy).emotions()
    (copy / "emotions.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"emotions\.json: .*one list of texts"):
        Corpus(copy).emotions()
    (copy / "emotions.json").write_text('["calm",\n "eager"')
    with pytest.raises(ValueError, match=r"emotions\.json:2: .*valid JSON"):
        Corpus(copy).emotions()


def test_line_separators_within_a_text_do_not_break_a_line(copy: Path) -> None:
    edit_line(copy, STORIES, 1, put(text="One line\u2028and another\u0085here."))
    assert "\u2028" in Corpus(copy).stories(["calm"])[0].text


def test_file_names_write_spaces_as_hyphens(corpus: Corpus) -> None:
    for emotion in corpus.emotions():
        assert (corpus.root / "stories" / f"{slug(emotion)}.jsonl").is_file()
