"""CycleGAN, and anomalies as what does not come back from another domain.

Zhu, Park, Isola, Efros: Unpaired Image-to-Image Translation using
Cycle-Consistent Adversarial Networks, ICCV 2017; constants follow the authors'
code (github.com/junyanz/pytorch-CycleGAN-and-pix2pix). Here both cohorts, a
and b, are of healthy images; G_b makes of an image of a one as b would show
it, D_b says which images are b's own, and the same with a and b exchanged:

  gan       mean (D_b(G_b(x_a)) - 1)^2                              (1)
  cycle     |G_a(G_b(x_a)) - x_a|                                   (2)
  identity  |G_a(x_a) - x_a|                                        (3)
  D_b       1/2 mean D_b(h)^2 + 1/2 mean (D_b(x_b) - 1)^2           (4)

h is what G_b has made now or before: one of the history's 50 images in half
of the cases. A step is G's by the weighted sum of (1) to (3) over both
domains, then D's by (4) with the images that G has just made.

To score x, it goes to b and back, y = G_a(G_b(x)), and the score is how x and
y differ; `score.routes` has other ways: 'ab', which ends in b, and from b
'bab' and 'ba'. What healthy tissue does not have may be lost on the way. It
need not be: generators learn to hide what the other domain cannot show in a
signal that no one sees (Chu et al. 2017), and then lesions come back, too;
jaxmed/methods/steganomaly.py is the remedy.
"""

from ml_collections import ConfigDict

from jaxmed.method import Info, Method
from jaxmed.nn.cycle import make_method


def build(config: ConfigDict, info: Info) -> Method:
  return make_method(config, info)
