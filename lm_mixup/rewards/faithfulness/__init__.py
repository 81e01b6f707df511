"""How faithful a distilled text is to the texts it was distilled from."""

from lm_mixup.rewards.faithfulness.measure import Faithfulness, measure
from lm_mixup.rewards.faithfulness.sources import Source
from lm_mixup.rewards.faithfulness.support import Span

__all__ = ["Faithfulness", "Source", "Span", "measure"]
