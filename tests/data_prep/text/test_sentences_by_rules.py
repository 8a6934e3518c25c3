"""Splitting paragraphs of other languages than English: speech, ordinals, initials; losslessly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.text.sentences import splitter

LANGUAGES = ["ar", "bn", "de", "el", "es", "fa", "fr", "he", "hi", "ja", "ko", "pl", "ru", "th"]
LANGUAGES += ["tr", "ur", "vi", "zh", "zh-hant", "sv", "unheard-of"]

# Written for this test; each list is a paragraph, cut where a reader would
PARAGRAPHS = [
    ("zh", ["图书馆早上八点开门。", "2019年以前是九点。", "你带卡了吗？", "当然！"]),
    ("zh", ["“你是谁？”门卫问。", "她答道：“我是新来的老师。”", "门开了。"]),
    ("zh", ["我……我不知道。", "他慢慢地走远了……", "再也没有回来。"]),
    ("ja", ["駅前に新しい店ができた。", "2020年の春のことだ。", "もう行きましたか？"]),
    ("ja", ["「遅くなってごめん。」と兄は謝った。", "母は笑った。", "雨は止んでいた。"]),
    ("ko", ["이 회의는 2021. 4. 17. 부산에서 열렸다.", "모두가 찬성했다."]),
    ("ko", ['"어디 가니?" 어머니가 물으셨다.', "동생은 웃기만 했다.", "비가 왔다..."]),
    ("ar", ["افتتح المتحف عام 1998.", "هل زرته من قبل؟", "نعم، مرتين!"]),
    ("fa", ["کتابخانه ساعت هشت باز می‌شود.", "آیا کارت دارید؟", "بله."]),
    ("ur", ["یہ شہر بہت پرانا ہے۔", "کیا آپ وہاں گئے ہیں؟", "جی ہاں۔"]),
    ("hi", ["डॉ. मेहता कल आएँगी।", "क्या बैठक दस बजे है?", "हाँ।"]),
    ("bn", ["বইটি টেবিলের উপর আছে।", "তুমি কি পড়েছ?", "না।"]),
    ("de", ["Am 3. Oktober kam Heinrich IV. zurück.", "Der 2. Band fehlt.", "Schade!"]),
    ("de", ["„Kommst du?“, fragte sie.", "Er schwieg.", "Um 1990.",
            "Damals war es anders."]),
    ("pl", ["Urodził się 11. listopada w Łodzi.", "Był synem Jana III. Sobieskiego.", "Tak?"]),
    ("tr", ["Sergi 29. Ekim günü açıldı.", "Padişah III. Selim gelmedi.", "Neden?"]),
    ("es", ["—¿Quién llama? —dijo la anciana.", "Nadie respondió.", "¡Qué noche!"]),
    ("fr", ["« Où vas-tu ? » demanda-t-il.", "Elle partit sans répondre.", "M. Lebrun la suivit."]),
    ("el", ["«Πού πας;» φώναξε ο γέρος.", "Κανείς δεν γύρισε.", "Έβρεχε."]),
    ("ru", ["— Кто там? — спросила хозяйка.", "Никто не ответил.", "См. рис. 12 и с. 40."]),
    ("ru", ["Роман написал А. П. Чернов.", "Он жил в Твери."]),
    ("th", ["ห้องสมุดเปิดตอนแปดโมงเช้า", "นักเรียนหลายคนมารออยู่หน้าประตู", "อากาศวันนี้ดีมากเลย"]),
    ("th", ["เขาซื้อหนังสือเก่า 3 เล่มที่ร้าน ABC ใกล้สถานีรถไฟ และนำกลับบ้านทันที"]),
]  # fmt: skip


@pytest.mark.parametrize(("language", "sentences"), PARAGRAPHS)
def test_a_paragraph_is_cut_where_its_reader_would(language: str, sentences: list[str]) -> None:
    blank = "" if language in ("zh", "ja") else " "
    assert splitter("sentencex", language)(blank.join(sentences)) == sentences


@pytest.mark.parametrize("language", LANGUAGES)
@given(text=st.text(st.sampled_from("aB7 .!?…。？！।؟“”„«»「」\"'()（）-—\n的か아क"), max_size=40))
def test_nothing_but_blanks_is_lost_and_no_sentence_is_blank(language: str, text: str) -> None:
    sentences = splitter("sentencex", language)(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence.strip() for sentence in sentences)


@pytest.mark.parametrize("language", ["de", "zh"])
def test_a_paragraph_longer_than_a_window_is_cut_as_its_parts_are(language: str) -> None:
    sentence = "Das Wetter war gut. " if language == "de" else "天气很好。"
    assert splitter("sentencex", language)(sentence * 2000) == [sentence.strip()] * 2000


def test_text_without_any_end_is_one_sentence_however_long() -> None:
    text = "ไม่มีจุดจบ" * 2000
    assert splitter("sentencex", "th")(text) == [text]


def test_a_few_hundred_quotations_in_a_row_are_all_found() -> None:
    assert len(splitter("sentencex", "zh")("“你好。”" * 3000)) == 3000


def test_a_lower_case_word_or_marks_alone_start_no_sentence() -> None:
    for text in ("Il a ri ! puis rien.", "Fin. .", "Vai! – disse."):
        assert splitter("sentencex", "fr")(text) == [text]
