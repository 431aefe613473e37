"""python -m shoal._cli"""

from . import main

main()
