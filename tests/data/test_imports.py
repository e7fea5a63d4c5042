import subprocess
import sys


def test_importing_the_data_sets_imports_no_scikit_learn():
    check = "import hesitant.data, sys; sys.exit(any(name.split('.')[0] == 'sklearn' for name in sys.modules))"
    subprocess.run([sys.executable, "-c", check], check=True)
