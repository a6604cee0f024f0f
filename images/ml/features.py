"""The 13 findings that models see, and the values that they can have. Standard library only."""

FEATURES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal")
# Lowest and highest value: years, mm Hg, mg/dl, bpm, mm of ST depression. The same as the warehouse's.
QUANTITIES = {"age": (0, 120), "trestbps": (50, 300), "chol": (50, 1000), "thalach": (30, 250), "oldpeak": (0, 10)}
CODES = {"sex": (0, 1), "cp": (1, 2, 3, 4), "fbs": (0, 1), "restecg": (0, 1, 2), "exang": (0, 1), "slope": (1, 2, 3),
         "ca": (0, 1, 2, 3), "thal": (3, 6, 7)}  # fmt: skip
