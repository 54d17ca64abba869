"""Tables to laws to figures.

    frame = load_results("results/quickstart.parquet")
    law = fit(frame)                         # rfid = c * bits_per_pixel^(-alpha), with intervals
    print(law.summary())
    print(report_card(law).text())         # everything to know before quoting it
    compare_laws(frame)                      # which law predicts what it has not seen
    fit(load_table("runs.csv"), "loss = E + A / N^a + B / D^b", bounds={"E": (0, float("inf"))})
    scaling_figure(frame, [law], "scaling.png")
    print(design(law, candidates, 40, "parameter=alpha", cost="device_hours").text())   # what to run next
    write_page(make_report(frame, "quickstart"), "report.html")

Names are imported on first use (PEP 562), so that ``from gsq import analysis`` costs nothing. No wing has the name of a
function, such as ``fit``: a submodule of that name would replace the function on the package.
"""

import lazy_loader

if __name__ == "analysis":
    raise ImportError("this room is called gsq.analysis: write `from gsq import analysis`")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
