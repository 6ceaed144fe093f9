"""Cost of imports."""

import subprocess
import sys


def test_services_import_without_engines() -> None:
    code = (
        "import pkgutil, importlib, sys, services.embedding, services.transcription\n"
        "for package in (services.embedding, services.transcription):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers', 'faster_whisper', 'ctranslate2',"
        " 'av', 'numpy', 'onnxruntime') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
