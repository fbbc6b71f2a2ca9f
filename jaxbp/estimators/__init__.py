"""``MLPClassifier`` and ``MLPRegressor`` as scikit-learn has them, trained by this package.

Read ``updates`` for the two update rules, ``network`` for what is compiled, ``perceptron`` for the
training that both share, and ``classifier`` and ``regressor`` for the rest.  ``parameters`` says
what each parameter may be.  ``import jaxbp`` does not import it: it needs scikit-learn, by
``pip install 'jaxbp[estimators]'``.
"""

from jaxbp.estimators.classifier import MLPClassifier
from jaxbp.estimators.regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
