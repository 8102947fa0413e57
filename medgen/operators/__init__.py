"""Forward models of degradation, ``y = A(x) + noise``: one object simulates training pairs and drives restoration.

Every operator is bound to a volume size and has ``forward``, ``adjoint`` and, where there is one, ``pseudo_inverse``
and ``svd``; volumes are ``(B, C, *spatial)``, 2D and 3D.
"""

from medgen.operators.base import Operator
from medgen.operators.bias import BiasField, draw_bias_field
from medgen.operators.blur import Blur
from medgen.operators.chain import Chain
from medgen.operators.coils import simulate_sensitivities
from medgen.operators.divergent import ConeBeam, FanBeam
from medgen.operators.gibbs import Gibbs
from medgen.operators.kspace import CartesianKSpace, cartesian_mask
from medgen.operators.mask import Mask
from medgen.operators.metal import MetalTrace
from medgen.operators.motion import RigidMotion, draw_motion
from medgen.operators.noise import NOISES, GaussianNoise, Noise, PoissonNoise, RicianNoise, TransmissionNoise
from medgen.operators.phase import Magnitude, Phase
from medgen.operators.projection import ParallelBeam, view_angles
from medgen.operators.radial import RadialKSpace
from medgen.operators.registry import OPERATORS, adjoint_error, register_operator
from medgen.operators.separable import Separable
from medgen.operators.slice_profiles import SLICE_PROFILES
from medgen.operators.solve import least_squares
from medgen.operators.svd import SVD
from medgen.operators.through_plane import ThroughPlane

__all__ = [
    "NOISES",
    "OPERATORS",
    "SLICE_PROFILES",
    "SVD",
    "BiasField",
    "Blur",
    "CartesianKSpace",
    "Chain",
    "ConeBeam",
    "FanBeam",
    "GaussianNoise",
    "Gibbs",
    "Magnitude",
    "Mask",
    "MetalTrace",
    "Noise",
    "Operator",
    "ParallelBeam",
    "Phase",
    "PoissonNoise",
    "RadialKSpace",
    "RicianNoise",
    "RigidMotion",
    "Separable",
    "ThroughPlane",
    "TransmissionNoise",
    "adjoint_error",
    "cartesian_mask",
    "draw_bias_field",
    "draw_motion",
    "least_squares",
    "register_operator",
    "simulate_sensitivities",
    "view_angles",
]
