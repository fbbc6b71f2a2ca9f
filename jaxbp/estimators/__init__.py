"""``MLPClassifier`` and ``MLPRegressor`` as scikit-learn has them, trained by this package.

Read ``updates`` for the two update rules, ``network`` for what is compiled, ``perceptron`` for the
training that both share, and ``classifier`` and ``regressor`` for the rest.  ``parameters`` says
what each parameter may be.  ``search`` finds the best learning rate, alpha and seed, for
``MLPClassifierCV`` and ``MLPRegressorCV``.  ``import jaxbp`` does not import this package: it needs
scikit-learn, by ``pip install 'jaxbp[estimators]'``.
"""

from jaxbp.estimators.classifier import MLPClassifier
from jaxbp.estimators.classifier_cv import MLPClassifierCV
from jaxbp.estimators.regressor import MLPRegressor
from jaxbp.estimators.regressor_cv import MLPRegressorCV

__all__ = ["MLPClassifier", "MLPClassifierCV", "MLPRegressor", "MLPRegressorCV"]
