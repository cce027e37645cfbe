import srt

from scripts.pipeline.captions import Cue, to_ffmetadata, to_srt, to_transcript, to_vtt

CUES = [Cue(0.0, 2.5, "One query asks."), Cue(3661.0, 3662.0625, "Keys answer, “values” mix.")]


def test_an_independent_parser_reads_back_the_srt_file():
    read = list(srt.parse(to_srt(CUES)))
    assert [(cue.start.total_seconds(), cue.content) for cue in read] == [(cue.start, cue.text) for cue in CUES]
    assert read[1].end.total_seconds() == 3662.062  # milliseconds


def test_a_vtt_file_has_its_header_and_writes_times_with_a_point():
    lines = to_vtt(CUES).splitlines()
    assert lines[:2] == ["WEBVTT", ""]
    assert lines[2:4] == ["00:00:00.000 --> 00:00:02.500", "One query asks."]
    assert "01:01:01.000 --> 01:01:02.062" in lines


def test_a_time_just_below_a_second_is_rounded_up_into_it():
    assert "00:00:01.000 --> 00:01:00.000" in to_vtt([Cue(0.9996, 59.9997, "x")])


def test_chapter_titles_keep_the_signs_that_mean_something_to_ffmpeg():
    text = to_ffmetadata([Cue(0, 1.5, "a=b; #1 \\ c")], "T = 0")
    assert "title=a\\=b\\; \\#1 \\\\ c" in text
    assert "title=T \\= 0" in text
    assert "START=0\nEND=1500" in text


def test_the_transcript_lists_words_under_their_chapter():
    chapters = [Cue(0, 3, "Opening"), Cue(3, 4000, "The bill")]
    lines = to_transcript("KV Cache", "Tagline.", chapters, CUES).splitlines()
    assert lines[0] == "# KV Cache"
    assert lines.index("## 00:00 Opening") < lines.index("One query asks.") < lines.index("## 00:03 The bill")
    assert lines[-1] == "Keys answer, “values” mix." or lines[-2] == "Keys answer, “values” mix."
