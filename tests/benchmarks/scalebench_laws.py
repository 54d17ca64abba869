"""ScaleBench's 65 laws (Li et al., arXiv 2604.22753) as formulas of this project, with their published boxes.

A task's table has the columns named in TASKS; where a law reads logarithms, the table holds them as well. Parameters
are listed in the published order. Clipping of exponents at +-50 in the published code is left out: no fit comes there.
The laws of the task domain are one for each output; where outputs share exponents, the table is long and has an
indicator o1 ... o5 for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

Box = tuple[float, float]
DOMAINS = 5


@dataclass(frozen=True)
class Published:
    """One law: its formula, and its parameters with their box, in the published order."""

    formula: str
    box: dict[str, Box]
    outputs: tuple[int, ...] = ()
    """Domain laws of one output each: which outputs, each with a formula and parameters of its own."""


def _law(formula: str, names: str, *box: Box) -> Published:
    return Published(formula, dict(zip(names.split(), box, strict=True)))


def _poly(names: Sequence[str], columns: str = "uvsp") -> str:
    """A polynomial of degree 2 in four columns: constant, linear terms, squares, products."""
    a, b, c, d = columns
    terms = [a, b, c, d, *(f"{one}^2" for one in columns)]
    terms += [f"({x}*{y})" for x, y in ((a, b), (a, c), (a, d), (b, c), (b, d), (c, d))]
    return " + ".join([names[0], *(f"{name}*{term}" for name, term in zip(names[1:], terms, strict=True))])


def _names(letter: str, count: int, first: int = 0) -> list[str]:
    return [f"{letter}{i}" for i in range(first, first + count)]


PARALLEL = [
    _law(
        "c0 + c1*N^(-a) + c2*S^(-b) + c3*N^(-a)*S^(-b)",
        "c0 c1 a c2 b c3",
        (-5, 5),
        (0, 500),
        (0, 2),
        (-50, 50),
        (0, 2),
        (-100, 100),
    ),
    _law("c0 + c1*N^(-a) + c2*S^(-b)", "c0 c1 a c2 b", (-5, 5), (0, 500), (0, 2), (-50, 50), (0, 2)),
    _law("a*N^b + c/(1 + S) + d", "a b c d", (0, 500), (-2, 0), (-5, 5), (-5, 5)),
    _law("a*N^b + c*S^(-0.5) + d", "a b c d", (0, 500), (-2, 0), (-5, 5), (-5, 5)),
    _law("max(A/max(N*(k*log(S) + 1), 1e-12), 1e-12)^alpha + E", "A k alpha E", (0, 1e9), (-100, 100), (0, 3), (-5, 5)),
    _law("c0 + c1*(N^(-a) + S^(-b))", "c0 c1 a b", (-200, 200), (-200, 200), (0, 2), (0, 2)),
    _law("L + A*N^(-a)/max(1 + k*log(S), 1e-12)", "L A a k", (-5, 5), (0, 500), (0, 2), (-50, 50)),
    _law("(a*N^b + c)/max(1 + d*log(S), 1e-12)", "a b c d", (0, 500), (-2, 0), (-5, 5), (-10, 10)),
    _law("A*N^(-a)*S^(-b)", "A a b", (0, 5000), (0, 2), (0, 2)),
    _law("(A*N^(-a) + E)*S^(-b)", "A a E b", (0, 500), (0, 2), (-5, 5), (0, 2)),
]

MOE = [
    _law("L + B*N^(-a)*E^(-b)", "L B a b", (0, 3), (0.1, 500), (0, 1.5), (-0.5, 1.5)),
    _law("L + K*(N^a*E^b)^(-g)", "L K a b g", (0, 3), (0, 500), (0, 2), (0, 2), (0, 2)),
    _law(
        "A*N^a/(1 + B*E^b) + C*N^(0.6*a) + D", "A a B b C D", (0, 5e3), (-1.5, 0), (0, 20), (0, 2), (-1e4, 1e4), (-5, 5)
    ),
    _law(
        "a*N^(-alpha)*(1 + b*E)^(-g) + c + d*(log(N) - 0.4*log(1 + E))",
        "a alpha b g c d",
        (0.1, 500),
        (0, 1.5),
        (0, 20),
        (0, 1.5),
        (-5, 5),
        (-1, 1),
    ),
    _law(
        "p0 + exp(p1 + p2*log(E) + p3*log(N) + p4*(log(E)*log(N))) + p5*log(E)",
        "p0 p1 p2 p3 p4 p5",
        (0, 3),
        (-5, 10),
        (-1, 1),
        (-1, 1),
        (-0.1, 0.1),
        (-1, 1),
    ),
    _law(
        "a*N^(-b)*(1 + c*E^(-d)) + e + f/(E*N^0.05)",
        "a b c d e f",
        (0, 200),
        (0, 1.5),
        (-5, 20),
        (-0.5, 2),
        (-5, 5),
        (-20, 20),
    ),
    _law(
        "p0*E^p1*N^p2 + p3*N^p4 + p5",
        "p0 p1 p2 p3 p4 p5",
        (-500, 500),
        (-1, 0.5),
        (-1.5, 0.5),
        (-500, 500),
        (-1.5, 0.5),
        (-5, 5),
    ),
    _law("a*N^b*E^c + d", "a b c d", (0, 500), (-1.5, 0.5), (-1.5, 0.5), (0, 3)),
    _law("c0 + A*(N*E^g)^(-a)", "c0 A g a", (0, 3), (0, 500), (-1, 2), (0, 2)),
    _law(
        "b + A*(N/1e9)^(-a)*((1 + B*E^g)/(1 + B))^(-d)",
        "b A a B g d",
        (0, 3),
        (0, 15),
        (0, 2),
        (0, 100),
        (0, 6),
        (0, 2),
    ),
]

SPARSITY = [
    _law(
        "exp(d - a*log(P) - b*log(N) + c*(log(P)*log(N))) + exp(f)",
        "d a b c f",
        (-5, 5),
        (0.01, 3),
        (0.01, 3),
        (-1, 1),
        (-5, 5),
    ),
    _law("exp(d)*P^(-a)*N^(-b) + exp(f)", "d a b f", (-5, 5), (0.01, 3), (0.01, 3), (-5, 5)),
    _law(
        "exp(d)*P^(-a) + exp(e - b*log(N) + c*(log(P)*log(N))) + exp(f)",
        "d a e b c f",
        (-5, 5),
        (0.01, 3),
        (-5, 5),
        (0.01, 3),
        (-1, 1),
        (-5, 5),
    ),
    _law("exp(d)*P^(-a) + exp(e)*N^(-b) + exp(f)", "d a e b f", (-5, 5), (0.01, 3), (-5, 5), (0.01, 3), (-5, 5)),
]

FARSEER = [
    _law(
        "exp(s*N^q + S) + exp(B*N^b + Q)*D^(-exp(A*N^a + E))",
        "E s q S B b Q A a",
        (1, 6),
        (-1, 0.3),
        (0.01, 0.5),
        (-1, 1),
        (10, 1000),
        (-0.6, -0.01),
        (-5, 1),
        (-5, 1),
        (0.001, 0.25),
    ),
]

DATA = [
    _law("A*N^(-a) + B*D^(-b) + E*U^g*N^d", "A a B b E g d",
         (1e-3, 1e9), (0.05, 2), (1e-3, 1e8), (0.05, 2), (-100, 200), (-0.5, 0.5), (-0.5, 0.5)),
    _law("a + b*U^p + c*N^q + d*D^r", "a b c d p q r",
         (-3, 10), (-1e6, 1e6), (-1e6, 1e6), (-1e7, 1e7), (-1.5, 0.5), (-1.5, 0.5), (-1.5, 0.5)),
    _law("A*(min(r*U, N)*(1 + t*(1 - exp(-max(N/min(r*U, N) - 1, 0)/t))))^(-a)"
         " + B*(U*(1 + T*(1 - exp(-(D/U - 1)/T))))^(-a) + C", "A t B T a C r",
         (1e-3, 1e7), (1e-3, 500), (1e-3, 1e7), (1e-3, 500), (0.05, 2), (-3, 10), (1e-3, 100)),
    _law("L + A*N^(-a) + B*(D/(1 + D/(s*U*N^d)))^(-b)", "L A a B b s d",
         (-3, 8), (1e-3, 1e11), (0.05, 2.5), (1e-3, 1e9), (0.05, 2.5), (1e-5, 1e7), (-2, 1.5)),
    _law("A*N^(-a) + B*(U^g*D^(1 - g))^(-b) + E", "A a B b E g",
         (1e-3, 1e10), (0.05, 2), (1e-3, 1e10), (0.05, 2), (-3, 10), (0, 1)),
    _law("E + A*N^(-a) + B*(D/(1 + C*max(D/U - 1, 1e-300)^c*N^d))^(-b)", "E A a B b C c d",
         (-3, 10), (1e-3, 1e11), (0.05, 2), (1e-3, 1e12), (0.05, 2), (0, 1e4), (0, 2), (-1, 1)),
    _law("L + A*(N*U)^a + B*D^b + C*N^c", "L A a B b C c",
         (-3, 10), (1e-3, 1e9), (-2, 0.5), (1e-3, 1e9), (-2, 0.5), (-1e13, 1e13), (-2.5, 0.5)),
    _law("a + b*D^(-alpha) + c*N^(-beta) + d*max(abs(log(U/D + 1)), 1e-12)^g", "a b c d alpha beta g",
         (-3, 10), (-1e8, 1e8), (-1e8, 1e8), (-200, 200), (0.05, 2), (0.05, 2), (0.05, 5)),
    _law("A*N^(-a) + B*D^(-b)*(1 + C*U^(-g)) + L", "A a B b C g L",
         (1e-3, 1e7), (0.05, 2), (1e-3, 1e7), (0.05, 2), (0, 1e11), (0.05, 2), (-3, 10)),
    _law("L + A*N^(-a) + B*exp(max(logaddexp(-b*q*log(D), -b*q*(log(k) + log(U))), log(1e-12))/q)", "L A B a b k q",
         (-3, 8), (1e-3, 1e9), (1e-3, 1e9), (0.05, 2), (0.05, 2), (1e-3, 1e4), (0.1, 50)),
]  # fmt: skip

_E4, _FIVE, _100 = (1e-6, 1e4), (-5, 5), (-100, 100)  # amplitudes are clipped from below at 1e-6 in the published code
_SIGNED = (-1e4, 1e4)
VOCAB = [
    _law("c + A*V^b*P^e*D^g", "c A b e g", _100, _SIGNED, _FIVE, _FIVE, _FIVE),
    _law("L + A*exp((logaddexp(-a*r*log(P), -b*r*log(D)) - log(2))/r)*(1 + C*(log(V) - v)^2)", "L A a b C v r",
         _100, _SIGNED, _FIVE, _FIVE, _100, (-10, 30), (0.1, 10)),
    _law("L + exp(logaddexp(q*(log(a) - alpha*log(P)), q*(log(b) - beta*(log(D) + f*log(V))))/q)",
         "L a alpha b beta f q", _100, _E4, _FIVE, _E4, _FIVE, _FIVE, (0.1, 10)),
    _law("L + A*exp(-d*max(a*log(P), log(l) + b*log(D)))*V^(-g)", "L A a b d l g",
         _100, _E4, _FIVE, _FIVE, _FIVE, (1e-6, 1e4), _FIVE),
    _law("a*P^b*V^c*D^d + e*P^f + g", "a b c d e f g", _SIGNED, _FIVE, _FIVE, _FIVE, _SIGNED, _FIVE, _100),
    _law("A*(P*V^k)^(-a) + B*(D*V^l)^(-b) + c", "A a k B b l c", _E4, _FIVE, _FIVE, _E4, _FIVE, _FIVE, _100),
    _law("A*P^(-a)*D^(-b) + B*V^g*D^(-d) + c", "A a b B g d c", _E4, _FIVE, _FIVE, _E4, _FIVE, _FIVE, _100),
    _law("a + b*log(V) + V^f*(c*P^(-d) + e*D^(-g))", "a b c d e g f",
         _100, _100, _SIGNED, _FIVE, _SIGNED, _FIVE, _FIVE),
    _law("A*P^(-a)*D^(-b)*(1 + g*log(V)) + d*V^e + L", "A a b g d e L",
         _E4, _FIVE, _FIVE, _100, _SIGNED, _FIVE, _100),
    _law("L + exp(a + b*log(P) + c*log(V) + d*log(V)^2 + e*log(D) + f*(log(V)*log(D)))", "L a b c d e f",
         _100, (-20, 20), (-2, 2), (-2, 2), (-0.1, 0.1), (-2, 2), (-0.1, 0.1)),
]  # fmt: skip


def _soft(text: str) -> str:
    return f"softplus(max(min({text}, 20), -20))"


_W, _A, _B = _names("c", 15), _names("a", 15), _names("b", 15)
_POLY: tuple[Box, ...] = ((-15, 15), *[(-0.35, 0.35)] * 4)
_RATE: tuple[Box, ...] = ((-5, 15), (-5, 5))
_T: Box = (-12, 12)
LR = [
    _law(f"exp({_poly(_W)})", " ".join(_W), *_POLY, *[(-0.025, 0.025)] * 10),
    _law(
        "L + softplus(C1)*exp(-softplus(a1)*p) + softplus(C2)*exp(-softplus(a2)*s)"
        " + softplus(C3)*exp(-softplus(a3)*(s - k*p)) + softplus(C4)*exp(-softplus(a4)*v)"
        f" + {_soft('l0 + l1*p + l2*s + l3*v')}*(u - u0 - u1*p - u2*s - u3*v)^2"
        f" + {_soft('b0 + b1*p + b2*s + b3*v')}*(v - v0 - v1*p - v2*s)^2"
        f" + 2*tanh(r)*sqrt({_soft('l0 + l1*p + l2*s + l3*v')}*{_soft('b0 + b1*p + b2*s + b3*v')})"
        "*(u - u0 - u1*p - u2*s - u3*v)*(v - v0 - v1*p - v2*s)",
        "L C1 a1 C2 a2 C3 a3 k u0 u1 u2 u3 v0 v1 v2 l0 l1 l2 b0 b1 b2 r l3 b3 C4 a4",
        (0, 3), *_RATE, *_RATE, *_RATE, (-5, 3), (-20, 2), *[(-3, 3)] * 3, (0, 20), *[(-3, 3)] * 2, *[_T] * 6, (-8, 8),
        _T, _T, *_RATE,
    ),
    _law(
        "E + A*exp(-a*p) + B*exp(-b*s) + F*exp(-w1*p - w2*s)"
        " + C*exp(C1*p + C2*s + C3*v)*(u - m0 - m1*p - m2*s - m3*v - m4*(p*s))^2"
        " + G*exp(G1*p + G2*s)*(v - n0 - n1*p - n2*s - n3*(p*s))^2",
        "E A a B b F w1 w2 C C1 C2 C3 m0 m1 m2 m3 m4 G G1 G2 n0 n1 n2 n3",
        (0.5, 3), *[(0, 5e5), (0.05, 2)] * 2, (0, 2e7), (0.05, 2), (0.05, 2), (0, 3), *[(-3, 3)] * 3, (-20, 5),
        *[(-10, 3)] * 4, (0, 3), (-3, 3), (-3, 3), (0, 15), *[(-3, 3)] * 3,
    ),
    _law(
        f"exp({_poly(_W)} + d1*(s - p) + d2*exp(-v) + d3*exp(-2*v) + d4*exp(-s) + d5*exp(-p))",
        " ".join([*_W, *_names("d", 5, 1)]), *_POLY, *[(-0.025, 0.025)] * 10, (-0.3, 0.3), (-10, 10), (-200, 200),
        (-1.5e9, 1.5e9), (-5e7, 5e7),
    ),
    _law(
        "L + A1*exp(-a1*p) + A2*exp(-a2*s) + A3*exp(-a3*v) + A4*exp(-a4*(s - p)^2) + A5*exp(-a5*(s - v))"
        " + c*exp(-w1*v - w2*p - w3*s)*(u - u0 - k1*v - k2*p - k3*s)^2",
        "L A1 a1 A2 a2 A3 a3 c u0 k1 k2 k3 w1 w2 w3 A4 a4 A5 a5",
        (0, 3), (0, 2e4), (0.01, 2), (0, 2e4), (0.01, 2), (0, 20), (0.01, 2), (0, 200), (-12, 3), *[(-2, 2)] * 6,
        (0, 5), (0, 2), (0, 2000), (0, 2),
    ),
    _law(
        "L + exp(c0 + c1*s + c2*p + c3*(s*p) + c4*u + c5*u^2 + c6*v + c7*v^2 + c8*(u*v) + c9*(u*s) + c10*(u*p)"
        " + c11*(v*s) + c12*(v*p))", "L " + " ".join(_names("c", 13)),
        (0, 3), (-8, 8), *[(-0.5, 0.5)] * 2, (-0.025, 0.025), *[(-0.6, 0.6)] * 2, *[(-0.5, 0.5)] * 2, (-0.04, 0.04),
        (-0.02, 0.02), (-0.04, 0.04), (-0.05, 0.05), (-0.02, 0.02),
    ),
    _law(
        f"E + exp({_poly(_A)}) + exp({_poly(_B)})", " ".join(["E", *_A, *_B]),
        (0, 2.5), *_POLY, *[(-0.03, 0.03)] * 10, *_POLY, *[(-0.03, 0.03)] * 10,
    ),
    _law(
        "L + softplus(c1)*exp(-softplus(a1)*p) + softplus(c2)*exp(-softplus(a2)*s) + softplus(c3)*exp(-softplus(a3)"
        "*(s - p)) + softplus(k1)*(u - f0 - f1*v - f2*p - f3*s)^2*(1 + tanh(t1)*tanh(u - f0 - f1*v - f2*p - f3*s))"
        " + softplus(k2)*(u - 0.5*v - g0 - g1*p - g2*s)^2*(1 + tanh(t2)*tanh(u - 0.5*v - g0 - g1*p - g2*s))"
        " + softplus(k3)*(s - p - d)^2",
        "L c1 a1 c2 a2 c3 a3 f0 f1 f2 f3 k1 t1 g0 g1 g2 k2 t2 d k3",
        (-1, 3), *[(-3, 12), (-5, 5)] * 3, (-20, 3), *[(-5, 5)] * 3, (-5, 10), (-5, 5), (-15, 5), *[(-5, 5)] * 2,
        (-5, 10), (-5, 5), (-5, 10), (-5, 10),
    ),
    _law(_poly(_W, "UVSP"), " ".join(_W), (-5, 30), *[(-4, 4)] * 4, *[(-0.3, 0.3)] * 10),
    _law(
        f"{_poly(_W)} + d1*exp(-0.5*s) + d2*exp(-0.5*p) + d3*exp(-v)", " ".join([*_W, "d1", "d2", "d3"]),
        (-5, 35), *[(-2, 2)] * 4, *[(-0.1, 0.1)] * 10, (-5e4, 5e4), (-2e4, 2e4), (-15, 15),
    ),
]  # fmt: skip


def _each(formula: str, names: str, *box: Box) -> Published:
    """A law of one output: x is its own share, x1 ... x4 the others, q their clipped values."""
    return Published(formula, dict(zip(names.split(), box, strict=True)), tuple(range(DOMAINS)))


def _shared(inner: str, bias: Box, weight: Box) -> Published:
    """All outputs together: exponents a1 ... a5 of the shares are theirs in common."""
    rows = " + ".join(
        f"o{i}*(b{i} + " + " + ".join(f"w{i}{k}*q{k}^a{k}" for k in range(1, 6)) + ")" for i in range(1, 6)
    )
    box: dict[str, Box] = {f"a{k}": (-1.0, 3.0) for k in range(1, 6)}
    for i in range(1, 6):
        box[f"b{i}"] = bias
        box |= {f"w{i}{k}": weight for k in range(1, 6)}
    return Published(inner.format(rows), box)


_TEN: Box = (-10, 10)
DOMAIN = [
    _each("a + b*log(q) + c1*x1 + c2*x2 + c3*x3 + c4*x4", "a b c1 c2 c3 c4", (-3, 6), (-10, 5), *[_TEN] * 4),
    _each("A*max(x + e, 1e-12)^(-a)*exp(w1*x1 + w2*x2 + w3*x3 + w4*x4)", "A e a w1 w2 w3 w4",
          (0, 10), (-0.03, 0.2), (0, 2), *[_FIVE] * 4),
    _each("b + c*q^e + w1*x1 + w2*x2 + w3*x3 + w4*x4", "b c e w1 w2 w3 w4", (-3, 6), (-20, 20), (-2, 4), *[_TEN] * 4),
    _shared("exp({})", (-3, 3), (-10, 10)),
    _shared("{}", (-3, 6), (-25, 25)),
    _each("C + A*max(x + t1*x1 + t2*x2 + t3*x3 + t4*x4, 1e-12)^(-a)", "C A a t1 t2 t3 t4",
          (-3, 6), (0, 10), (0, 3), *[_FIVE] * 4),
    _each("a + b*x + c*log(q) + d1*x1 + d2*x2 + d3*x3 + d4*x4 + e*(log(y1) + log(y2) + log(y3) + log(y4))",
          "a b c d1 d2 d3 d4 e", (-5, 8), (-10, 15), _FIVE, *[_TEN] * 4, _FIVE),
    _each("c - a*q^b", "c a b", (0, 6), (0, 5), (0, 3)),
    _each("a + b*log(q) + c*log(q)^2", "a b c", (-3, 6), (-2, 1), (-1, 1)),
    _each("a + b/max(x + e, 1e-12)", "a b e", (-3, 6), (-1, 1), (-0.03, 0.3)),
]  # fmt: skip

LAWS = {
    "parallel": PARALLEL,
    "moe": MOE,
    "sparsity": SPARSITY,
    "data_constrained": DATA,
    "farseer": FARSEER,
    "vocab": VOCAB,
    "domain_mixture": DOMAIN,
    "lr_bsz": LR,
}
COLUMNS = {
    "parallel": {"N": "num_params", "S": "parallel_size", "y": "loss"},
    "moe": {"E": "num_experts", "N": "dense_parameter_count", "y": "loss_validation"},
    "sparsity": {"P": "P", "N": "N_active", "y": "loss"},
    "data_constrained": {"U": "unique_tokens", "N": "params", "D": "tokens", "y": "loss"},
    "farseer": {"N": "N", "D": "D", "y": "loss"},
    "vocab": {"P": "non_vocab_parameters", "V": "vocab_size", "D": "num_characters", "y": "unigram_normalized_loss"},
    "lr_bsz": {},
    "domain_mixture": {},
}
"""Names of the formulas, and the published columns that they stand for."""


def tables(task: str, law: Published, raw: pd.DataFrame) -> list[pd.DataFrame]:
    """The table of a task's rows for this law, with target y; for laws of one output each, a table for each output."""
    if task == "lr_bsz":
        logs = {"u": "lr", "v": "bsz", "s": "data_size", "p": "non_embedding_param_size"}
        found = {name: np.log(raw[column]) for name, column in logs.items()}
        found |= {name.upper(): values / np.log(10) for name, values in found.items()}
        return [pd.DataFrame(found | {"y": raw["lm_loss"]})]
    if task != "domain_mixture":
        return [pd.DataFrame({name: raw[column].astype(float) for name, column in COLUMNS[task].items()})]
    shares = [raw[f"proportion_domain_{i + 1}"] for i in range(DOMAINS)]
    clipped = [share.clip(lower=1e-12) for share in shares]
    parts = []
    for i in range(DOMAINS):
        others = [k for k in range(DOMAINS) if k != i]
        part = {"x": shares[i], "q": clipped[i], "y": raw[f"loss_domain_{i + 1}"]}
        part |= {f"x{at}": shares[k] for at, k in enumerate(others, 1)}
        part |= {f"y{at}": clipped[k] for at, k in enumerate(others, 1)}
        if not law.outputs:
            part |= {f"q{k + 1}": clipped[k] for k in range(DOMAINS)}
            part |= {f"o{k + 1}": pd.Series(float(k == i), index=raw.index) for k in range(DOMAINS)}
        parts.append(pd.DataFrame(part))
    return parts if law.outputs else [pd.concat(parts, ignore_index=True)]
