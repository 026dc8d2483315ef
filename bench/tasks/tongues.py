"""tongues: how a question is put in each of the languages of MGSM and MSVAMP, and how an answer is told there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tongue:
    """`question` and `steps` are MGSM's own words (arXiv 2210.03057), around the question of a text to go on."""

    name: str
    question: str
    steps: str
    answer: str
    """The word that an answer is told with."""
    instruction: str
    says: str = ""
    """Of a regular expression: what may stand between that word and a number, other than a colon."""
    also: str = ""
    """Of a regular expression: other words for it."""
    comma: bool = False
    """Whether a comma comes before decimals."""


TONGUES = {
    "bn": Tongue(
        "Bengali",
        "প্রশ্ন",
        "ধাপে ধাপে উত্তর",
        "উত্তর",
        "ধাপে ধাপে সমাধান করুন। শেষ লাইনে “উত্তর:” লিখে তার পরে শুধু সংখ্যাটি লিখুন।",
        says="হলো|হল|হচ্ছে|হবে",
    ),
    "de": Tongue(
        "German",
        "Frage",
        "Schritt-für-Schritt-Antwort",
        "Antwort",
        "Löse die Aufgabe Schritt für Schritt. Schreibe in die letzte Zeile „Antwort:“ und danach nur die Zahl.",
        says=r"\b(?:ist|lautet|beträgt)\b",
        also="Lösung|Ergebnis",
        comma=True,
    ),
    "en": Tongue(
        "English",
        "Question",
        "Step-by-Step Answer",
        "Answer",
        "Solve the problem step by step. In the last line write “Answer:” and then only the number.",
        says=r"\bis\b",
    ),
    "es": Tongue(
        "Spanish",
        "Pregunta",
        "Respuesta paso a paso",
        "Respuesta",
        "Resuelve el problema paso a paso. En la última línea escribe «Respuesta:» y después solo el número.",
        says=r"\bes\b",
        comma=True,
    ),
    "fr": Tongue(
        "French",
        "Question",
        "Réponse étape par étape",
        "Réponse",
        "Résous le problème étape par étape. Sur la dernière ligne, écris « Réponse : » puis seulement le nombre.",
        says=r"\best\b",
        comma=True,
    ),
    "ja": Tongue(
        "Japanese",
        "問題",
        "ステップごとの答え",
        "答え",
        "段階的に解いてください。最後の行に「答え:」と書き、その後に数字だけを書いてください。",
        says="は",
        also="回答|解答|正解",
    ),
    "ru": Tongue(
        "Russian",
        "Задача",
        "Пошаговое решение",
        "Ответ",
        "Реши задачу шаг за шагом. В последней строке напиши «Ответ:» и после него только число.",
        says=r"[—–]|\b(?:равен|будет)\b",
        comma=True,
    ),
    "sw": Tongue(
        "Swahili",
        "Swali",
        "Jibu la Hatua kwa Hatua",
        "Jibu",
        "Tatua swali hatua kwa hatua. Katika mstari wa mwisho andika “Jibu:” kisha namba pekee.",
        says=r"\bni\b",
    ),
    "te": Tongue(
        "Telugu",
        "ప్రశ్న",
        "దశలవారీగా సమాధానం",
        "సమాధానం",
        "దశలవారీగా పరిష్కరించండి. చివరి వరుసలో “సమాధానం:” అని రాసి, తర్వాత సంఖ్యను మాత్రమే రాయండి.",
        says=r"(?=\W*\d)",
        also="జవాబు",
    ),
    "th": Tongue(
        "Thai",
        "โจทย์",
        "คำตอบทีละขั้นตอน",
        "คำตอบ",
        "แก้โจทย์ทีละขั้นตอน บรรทัดสุดท้ายให้เขียน “คำตอบ:” แล้วตามด้วยตัวเลขเท่านั้น",
        says="คือ|เท่ากับ",
    ),
    "zh": Tongue(
        "Chinese",
        "问题",
        "逐步解答",
        "答案",
        "请逐步解答。最后一行写“答案：”，后面只写数字。",
        says="是|为|為",
        also="答",
    ),
}
