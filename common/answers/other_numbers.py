"""Numbers of an answer that are no times of a span: `without_other_numbers(text) -> text`.

List numbers, frame numbers, percentages and scores, durations, years, counts of things. Each is
blanked by what stands right beside it, because an answer is rather left unread than misread. What
is blanked leaves `GONE`, over which no two times are joined.

Linear time: every repetition in a pattern is bounded or possessive.
"""

import re

GONE = " \u00a6 "
"""A broken bar: what no answer writes between two times."""

_DASH = r"(?:-|\u2013|\u2014)"
_NUM = r"[0-9]{1,9}+(?:[.,][0-9]{1,9}+)?+"
_WHOLE = r"(?<![0-9.:])"
"""Before a number: it begins here."""
_UNIT = r"(?:s|secs?|seconds?|sec\.|ms|m|mins?|minutes?|h|hrs?|hours?)(?![a-z])"
_CLOCK = r"[0-9]{1,3}(?::[0-9]{2}){1,2}(?:\.[0-9]{1,9})?"
_TIME = rf"(?:{_CLOCK}|{_NUM})(?:\s?{_UNIT})?"
_WORD_JOIN = r"\s{0,3}(?:~|\u2192|to|until|till?|through|and)\s{0,3}~?\s{0,3}"
_JOIN = rf"(?:\s{{0,3}}{_DASH}{{1,2}}>?\s{{0,3}}~?\s{{0,3}}|{_WORD_JOIN})"
_PAIR_FOLLOWS = rf"(?=[^0-9\n]{{0,12}}{_TIME}{_JOIN}[0-9])"
_PAIR_IN_WORDS_FOLLOWS = rf"(?=[^0-9\n]{{0,12}}{_TIME}{_WORD_JOIN}[0-9])"
_NO_PAIR = rf"(?!(?:\s?{_UNIT})?{_JOIN}[0-9])"
_ABOUT = r"(?:(?:a\stotal\sof|about|around|only|roughly|approximately|~)\s?){0,2}"
_IS = r"(?:[\"'*`\s:=~(]|(?:is|of|at|level|score|about|around|approximately|a\stotal\sof)\b){0,8}"

_LABEL = """(?<![a-z])(?:event|clip|segment|step|item|option|scene|part|shot|query|question|interval
  |span|answer|candidate|occurrence|instance|moment|action|activity|result|prediction|chapter|section
  |take|timestamp|highlight|camera|window|sequence|phase|no\\.|nr\\.)"""
_NUMBERED = r"""(?:version|page|level|chapter|room|floor|row|verse|volume|season|episode|grade|age
  |ages|aged|line)"""
_SCORE = """(?<![a-z])(?:confidence|conf\\.?|scores?|probability|prob\\.?|certainty|likelihood
  |similarity|relevance|rating|saliency|iou|fps|frame_?rate|rank|index|idx|id|frame_(?:number|index)
  |resolution)"""
_THING = """(?:fps|frames?|k?hz|px|pixels?|people|persons?|men|women|kids|children|boys|girls
  |players|times|cups?|eggs?|pieces?|steps?|reps?|laps?|rounds?|shots?|points?|met(?:er|re)s?|[kcm]m
  |kg|inch(?:es)?|feet|degrees?|years?\\sold|dollars?)"""
_AFTER_A_PAIR = """(?:seconds|secs|mins|minutes|hours|segundos|minutos|sekunders?|secondes|is|was|as
  |this|his|its|has|does|us|shows|depicts|contains|captures|features|represents|matches|corresponds
  |includes|covers|displays|happens|occurs|versus|plus|across|towards|afterwards)(?![a-z])"""
"""Words on s that are no things which a pair before them counts."""
_LENGTH = """(?:long|videos?|clips?|footage|recording|in\\s(?:length|duration|total)|duration|total
  |window|of\\s(?:video|footage))(?![a-z])"""

_FRAME = r"""frames?\s{0,2}[:#]?\s{0,2}[0-9]{1,7}+(?![.:][0-9])
  (?:\s{0,2}(?:-|\u2013|to|through|,?\s?and|,)\s{0,2}
    (?:frames?\s{0,2})?[#]?[0-9]{1,7}+(?![.:]?[0-9])){0,16}+"""


def _compiled(*patterns: str) -> tuple[re.Pattern[str], ...]:
    flags = re.IGNORECASE | re.MULTILINE | re.VERBOSE
    return tuple(re.compile(pattern, flags) for pattern in patterns)


_FRAMES = _compiled(rf"\(\s?{_FRAME}\s?\)", rf"(?<![a-z]){_FRAME}")
"""Blanked without a trace, so that `Frame 24 (12.0s) to Frame 38 (19.0s)` is a range of times."""
_LISTS = _compiled(
    # 1. 12.5 to 17.8; (2) 12.5 - 17.8
    r"^[ \t]{0,8}[-*\u2022]?[ \t]{0,4}\(?[0-9]{1,2}[.)]"
    r"(?=[ \t]{1,8}(?!(?:to|and|until)\b|-|\u2013|&))",
    # 1 - 12.5 to 17.8
    rf"^[ \t]{{0,8}}\(?[0-9]{{1,2}}[.:]?\)?[ \t]{{0,3}}(?:{_DASH}|[:|])[ \t]{{1,3}}"
    + _PAIR_IN_WORDS_FOLLOWS,
    # Event 1 - 12.5 to 17.8; clip 3 (12 to 17)
    rf"{_LABEL}\s{{0,2}}[#]?[0-9]{{1,3}}[\"'*`]?\s{{0,2}}(?:{_DASH}|[:.)(=]){{1,2}}{_PAIR_FOLLOWS}",
    # Segment 2: 20, 25
    rf"{_LABEL}\s{{0,2}}[#]?[0-9]{{1,3}}[\"'*`]?\s{{0,2}}:(?![0-9])",
    # #2, page 3 to 5, the 2nd time
    r"[#][0-9]{1,4}(?![.:]?[0-9])",
    rf"(?<![a-z]){_NUMBERED}\s{_NUM}(?:{_JOIN}(?:{_NUMBERED}\s)?{_NUM})?(?!\s?[:.]?[0-9])",
    r"(?<![0-9])[0-9]{1,3}(?:st|nd|rd|th)\s"
    r"(?:time|person|attempt|event|clip|floor|row|frame|half|one)\b",
)
_COUNTS = _compiled(
    # 2 to 3 people, 30 fps, 3 times
    rf"{_WHOLE}(?:{_NUM}{_JOIN})?{_NUM}[\s-]?{_THING}(?![a-z])",
    # 10 to 12 dancers, but not "from 10 to 12 dancers …"
    rf"(?<!from\s)(?<!between\s)(?<!is\s)(?<!at\s){_WHOLE}[0-9]{{1,4}}"
    rf"\s?(?:to|-|\u2013)\s?[0-9]{{1,4}}\s(?!{_AFTER_A_PAIR})[a-z]{{2,20}}s(?![a-z])",
    # 1920x1080, the score was 3 to 1, score 3-1
    r"(?<![0-9])[0-9]{2,5}\s?[x\u00d7]\s?[0-9]{2,5}(?![0-9])",
    rf"(?<![a-z])(?:leads?|led|won|wins|lost|loses|beats?|score\s(?:is|was))\s{_NUM}{_JOIN}{_NUM}",
    r"(?<![a-z])scores?\s[0-9]{1,3}\s?[-\u2013]\s?[0-9]{1,3}(?![0-9.]|\s?s)",
)
_SCORES = _compiled(
    # 95 %; confidence: 0.9; 0.87 confidence; 8/10; ± 0.5
    rf"{_WHOLE}{_NUM}\s?(?:%|percent(?![a-z]))",
    rf"{_SCORE}{_IS}{_NUM}(?:\s?/\s?[0-9]{{1,4}})?{_NO_PAIR}",
    rf"{_WHOLE}{_NUM}\s(?:confidence|probability|certainty)(?![a-z])",
    rf"{_WHOLE}{_NUM}\s?/\s?(?:5|10|100)(?![0-9.])",
    rf"(?:\u00b1|\+/-)\s?{_NUM}(?:\s?{_UNIT})?",
    # "start_frame": 24
    r"(?:start|end|first|last)_frame[\"'\s:=]{1,6}[0-9]{1,7}",
)
_DURATIONS = _compiled(
    # for 10 to 15 seconds, lasting 5 s
    rf"(?<![a-z])(?:for|lasting|lasts?|lasted|takes|took)\s{_ABOUT}"
    rf"{_NUM}(?:{_JOIN}{_NUM})?[\s-]?{_UNIT}",
    # duration: 5.3 s, but not "Duration: 12.5 - 17.8 s"
    rf"(?<![a-z])(?:duration|length|runtime|total(?:ing|\stime)?){_IS}{_TIME}{_NO_PAIR}",
    # a 30-second video, 5 s long, 5 to 10 minutes ago, a 5 to 10 second action, of 60 seconds
    rf"{_WHOLE}{_NUM}[\s-]?{_UNIT}[\s-]{_LENGTH}",
    rf"{_WHOLE}(?:{_NUM}{_JOIN})?{_NUM}[\s-]?{_UNIT}\s(?:ago|later|earlier)(?![a-z])",
    rf"(?<![a-z])an?\s{_NUM}{_JOIN}{_NUM}[\s-]?{_UNIT}",
    rf"(?<![a-z])of\s(?:the\s|a\s)?{_NUM}(?:[\s-]?{_UNIT})?{_NO_PAIR}",
)
_REST = _compiled(
    # in 2023, 2023-05-17
    r"(?<![a-z])(?:in|since|year|circa|copyright)\s(?:19|20)[0-9]{2}(?![0-9.:]|\s?s)",
    r"(?<![0-9])(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9](?![0-9])",
    # 5' to 8': minutes or quotes, nobody can say
    r"""(?<!['"0-9.:])[0-9]{1,3}'(?!['\s]{0,2}[0-9]{1,2}(?:\.[0-9]{1,3})?\s?(?:"|''))(?=\s|$)""",
    # not 3 to 5 but …; at 45 and at 58; 58 and a half
    rf"(?<![a-z])not\s(?:(?:from|at|between)\s)?{_TIME}{_JOIN}{_TIME}",
    rf"(?<![a-z])at\s{_TIME}\sand\s(?:again\s)?at(?![a-z])",
    rf"{_WHOLE}{_NUM}\sand\s(?:a\shalf|half\sa)",
)


def without_other_numbers(text: str) -> str:
    """The text with numbers that are no times of a span blanked."""
    for pattern in _FRAMES:
        text = pattern.sub(" ", text)
    for pattern in (*_LISTS, *_COUNTS, *_SCORES, *_DURATIONS, *_REST):
        text = pattern.sub(GONE, text)
    return text
