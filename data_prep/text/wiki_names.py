"""Names of templates by language, as data: what a Wikipedia calls them, and what they show.

A page's templates are looked up in all languages at once: a dump need not state its language, and
names that mean two things are left out. Disambiguation: what each wiki lists on its page
MediaWiki:Disambiguationspage, and the word in brackets after such titles. Names are in lower case.
"""

from __future__ import annotations

# English forms, "disambig" among them, are matched by a pattern in wikitext.py.
DISAMBIGUATION = {
    "af": "dubbelsinnig",
    "ar": "توضيح|صفحة توضيح",
    "az": "dəqiqləşdirmə",
    "be": "неадназначнасць",
    "bg": "пояснение",
    "bn": "দ্ব্যর্থতা নিরসন",
    "ca": "desambiguació",
    "cs": "rozcestník",
    "cy": "gwahaniaethu",
    "da": "flertydig",
    "de": "begriffsklärung|bks",
    "el": "αποσαφήνιση|αποσαφ",
    "eo": "apartigilo",
    "es": "desambiguación|desambiguacion|desambig|página de desambiguación",
    "et": "täpsustus|täpsustuslehekülg",
    "eu": "argipen",
    "fa": "ابهام‌زدایی|ابهام زدایی|ابهامزدایی",
    "fi": "täsmennyssivu",
    "fr": "homonymie",
    "gl": "homónimos",
    "he": "פירושונים",
    "hi": "बहुविकल्पी शब्द|बहुविकल्पी",
    "hr": "razdvojba",
    "hu": "egyért|egyert|egyértelműsítő lap",
    "hy": "երկիմաստ",
    "id": "disambiguasi",
    "it": "disambigua",
    "ja": "aimai|曖昧さ回避",
    "ka": "მრავალმნიშვნელოვანი",
    "kn": "ದ್ವಂದ್ವ ನಿವಾರಣೆ",
    "ko": "동음이의|동음이의어",
    "la": "discretiva",
    "mk": "појаснување",
    "ms": "nyahkekaburan",
    "nl": "doorverwijspagina|dp|dpintro",
    "nn": "fleirtyding",
    "no": "peker|pekerside|andre betydninger",
    "oc": "omonimia",
    "pl": "ujednoznacznienie|strona ujednoznaczniająca",
    "pt": "desambiguação|página de desambiguação",
    "ro": "dezambiguizare|dezamb",
    "ru": "неоднозначность|многозначность|значения",
    "sh": "višeznačna odrednica|čvor",
    "sk": "rozlišovacia stránka",
    "sl": "razločitev",
    "sq": "kthjellim",
    "sr": "вишезначна одредница|вишезначна",
    "sv": "förgrening|förgreningssida|grensida|olika betydelser",
    "ta": "பக்கவழி நெறிப்படுத்தல்",
    "te": "అయోమయ నివృత్తి",
    "th": "แก้กำกวม|คำกำกวม|แก้ความกำกวม",
    "tr": "anlam ayrımı|anlam ayrım",
    "uk": "багатозначність|неоднозначність|значення",
    "ur": "ضد ابہام",
    "vi": "trang định hướng|định hướng",
    "zh": "消歧义|消歧義|消歧义页|消歧義頁",
}

# The first argument is the text: a link to a page of another wiki, a word with its reading, text
# that lacks a source.
FIRST = {
    "en": "citation needed span|fact span",
    "es": "esd",
    "fr": "refnec|référence nécessaire|refsou|référence souhaitée",
    "it": "citazione necessaria|senza fonte",
    "ja": "仮リンク|ruby|ルビ|読み仮名 ruby不使用",
    "ko": "임시링크|한자",
    "ru": "comment|нп|нп3|нп5|не переведено|не переведено 3|не переведено 5",
    "uk": "не перекладено|iw",
}

# A quotation inside a sentence, with its marks; and one that is a paragraph
QUOTED = {
    "de": ("„", "“", '"|zitat|zitat-en'),
    "fr": ("« ", " »", "citation|guil|«"),  # with a text alone: English has a reference so
    "es": ("«", "»", "cita"),
}
PARAGRAPHS = {
    "fr": "citation bloc|début citation bloc",
    "it": "citazione",
    "pl": "cytat",
    "pt": "citação",
    "ru": "цитата",
}

# A number and its unit: {{unité|324|m}}, {{unité|12|km|2}}, {{Einheit|70|kg}}
NUMBERS = {
    "de": "einheit",
    "es": "unidad",
    "fr": "unité|unite|unité/2|nombre",
    "pt": "fmtn|unidade",
    "ru": "число",
    "uk": "число",
}

# Day, month and year: names of templates, months, what stands between. A month is a name or 1-12.
DATES = {
    "es": (
        "fecha",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        " de ",
    ),
    "fr": (
        "date|date-|date de naissance|date de naissance-|date de décès|date de décès-",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        " ",
    ),
    "pt": (
        "dtlink",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        " de ",
    ),
    "ru": (
        "дата",
        "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
        " ",
    ),
}

# "englisch Visitors" of {{EnS|Visitors}}
LANGUAGES = {
    **{"ars": "arabisch", "ens": "englisch", "ess": "spanisch", "frs": "französisch"},
    **{"grcs": "griechisch", "hes": "hebräisch", "its": "italienisch", "jas": "japanisch"},
    **{"las": "lateinisch", "nls": "niederländisch", "pls": "polnisch", "rus": "russisch"},
}

# A century in Roman figures: {{s-|XIX}}
CENTURIES = {
    "fr": ("s|s-|siècle", "{}e siècle"),
    "fr, before Christ": ("-s|-s-", "{}e siècle av. J.-C."),
    "es": ("siglo", "siglo {}"),
    "pt": ("séc", "século {}"),
}
