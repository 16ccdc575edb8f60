"""The page of `lm.compare.report.html`, in Jinja: no scripts, nothing fetched, light and dark by what the reader's system prefers."""

from lm.describe.template import STYLE, TABLE

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
""" + STYLE + """
:root { --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #c2629b; --c4: #c98a00; --c5: #3f9bd1; --c6: #8c6bb1; --c7: #a6761d; }
@media (prefers-color-scheme: dark) { :root { --c0: #4aa8e0; --c1: #f0813a; --c2: #2fc79c; --c3: #e29cc4; --c4: #f0b840; --c5: #8fd0f5;
  --c6: #b79be0; --c7: #d0a85c; } }
h1 { overflow-wrap: anywhere; } .verdict { color: var(--ink); font-size: 1.15rem; line-height: 1.5; margin: 0 0 .5rem; max-width: 60rem; }
.box { background: var(--sheet); border-left: 4px solid var(--c0); border-radius: .3rem; padding: .9rem 1.1rem; }
.warn { border-left-color: var(--alarm); margin-top: .7rem; }
p, li { max-width: 60rem; overflow-wrap: anywhere; } ul { color: var(--soft); padding-left: 1.2rem; margin: .4rem 0; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1.2rem; font-size: .9rem; margin: .4rem 0; }
dt { color: var(--soft); max-width: 12rem; } dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem 1.4rem; }
figure { margin: 0; min-width: 0; max-width: 34rem; } figcaption { font-size: .85rem; color: var(--soft); }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; } svg text { font-family: system-ui, sans-serif !important; }
.wide + .plots, .plots + .wide { margin-top: 1rem; } .said { color: var(--ink); }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--page); padding-right: .9rem; }
.said-of td { white-space: normal; min-width: 11rem; vertical-align: top; overflow-wrap: anywhere; }
.said-of td:first-child { min-width: 0; white-space: nowrap; }
.box .wide th, .box .wide td { background: var(--sheet); white-space: normal; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .8rem; }
.texts div { background: var(--sheet); border-radius: .4rem; padding: .6rem .8rem; min-width: 0; }
.texts b { font-size: .85rem; }
.texts p { color: var(--ink); font-size: .9rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
pre { background: var(--sheet); border-radius: .4rem; padding: .6rem .8rem; font-size: .82rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
{% for number in range(8) %}.c{{ number }} { background: var(--c{{ number }}); }
{% endfor %}
@media (max-width: 30rem) { body { padding: .9rem; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  .wide td:first-child { white-space: normal; max-width: 10rem; overflow-wrap: break-word; } }
@media print { @page { margin: 14mm; } html { font-size: 12px; } body { max-width: none; padding: 0; font-size: 11px; }
  .wide { overflow: visible; } h2, figcaption { break-after: avoid; } tr, figure, .box, .texts div { break-inside: avoid; }
  td, th { white-space: normal; padding-right: .5rem; } table { font-size: 9px; } .plots { grid-template-columns: repeat(3, 1fr); }
  .wide th:first-child, .wide td:first-child { position: static; } }
</style>
</head>
<body>
""" + TABLE + """
{% macro drawn(rows) %}{% if rows %}
<div class="plots">{% for figure in rows %}<figure>{{ figure.svg }}<figcaption>{{ figure.title }}</figcaption></figure>
{% endfor %}</div>
{% endif %}{% endmacro %}
{% macro facts(rows) %}<dl>{% for name, text in rows %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>{% endmacro %}
<h1>{{ title }}</h1>
<div class="box"><p class="verdict" id="verdict">{{ verdict }}</p>{% if ground %}<p>{{ ground }}</p>{% endif %}</div>
{% if missing %}<div class="box warn"><p>Still to come: {{ missing | join("; ") }}. All below is of what there is.</p></div>{% endif %}
{% if failures %}<div class="box warn"><p>Some runs failed, and are in no number below:</p>{{ table(failures) }}</div>{% endif %}
<h2>Asked</h2>
{{ facts(asked) }}
<h2>Scores</h2>
{{ table(scores) }}
<p>Bits per byte on the same raw bytes whatever the tokenizer; brackets are 95 % intervals over seeds (Student's t; of differences, paired
 by seed). p is corrected by Holm's method for all pairs of arms. "Over texts too" are the intervals, of scores and of
 differences, of a bootstrap that draws seeds and documents together: what other texts of this kind would say; of two or three seeds
 it knows too little to be wide enough for them. "Seeds needed" is how many
 would find such a difference in 4 of 5 tries, at 5 % divided by the number of pairs.</p>
{% if differences and differences | length < 7 %}<ul>{% for text in differences %}<li>{{ text }}</li>{% endfor %}</ul>{% endif %}
{{ drawn(figures.differences) }}
{% if figures.differences %}<p>Thick: over seeds; thin: over seeds and documents. Left of 0 the first named is better.</p>{% endif %}
{% if pairs %}{{ table(pairs) }}{% endif %}
<h2>Costs</h2>
{{ table(costs) }}
<p>Means over seeds. FLOPs are of matrix products by one account for all; seconds are those in steps, without compiling and evaluating;
 memory is what the compiled step asks for.{% if shared %} {{ shared }}{% endif %}</p>
{{ drawn(figures.costs) }}
<h2>Curves</h2>
{{ drawn(figures.curves) }}
{% if figures.curves %}<p>Mean over seeds, with a band from the lowest to the highest.</p>{% else %}<p>No lines yet.</p>{% endif %}
<h2>Sizes and rates</h2>
<div class="said-of">{{ table(choices) }}</div>
{{ drawn(figures.rates) }}
{% if figures.breakdown %}<h2>Where the loss is</h2>{{ drawn(figures.breakdown) }}{% endif %}
{% if recall %}{{ table(recall) }}<p>{{ of_recall }}</p>{% endif %}
{% if suites %}<h2>Suites</h2>{{ table(suites) }}{% endif %}
{% if prompts %}
<h2>Samples</h2>
{% for prompt in prompts %}
<p><span class="said">{{ prompt.prompt }}</span> ... {{ prompt.how }}</p>
<div class="texts">{% for said in prompt.texts %}
<div><b><span class="mark c{{ marks[said.arm] }}"></span>{{ said.arm }}</b><p>{{ said.text }}</p></div>
{% endfor %}</div>
{% endfor %}
{% endif %}
{% if settings %}<h2>Configs</h2><p>Keys that arms differ in.</p>{{ table(settings) }}{% endif %}
{% if runs %}<h2>Runs</h2>{{ table(runs) }}{% endif %}
<h2>Where the numbers are from</h2>
{{ facts(provenance) }}
<h2>Again</h2>
<pre>{{ command }}</pre>
</body>
</html>
"""
