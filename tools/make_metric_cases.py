#!/usr/bin/env python3
"""Makes tests/eval/data/metrics.json: small texts, and what LongBench's own metrics.py says of them.

    pip install rouge fuzzywuzzy python-Levenshtein jieba
    tools/make_metric_cases.py DIR      the folder of LongBench's metrics.py
"""
import json
import pathlib
import random
import sys

OUT = pathlib.Path(__file__).resolve().parent.parent / 'tests' / 'eval' / 'data' / 'metrics.json'

WORDS = ('the a an The A cat cats river Rivers moon. moon, silver-grey "silver" 12 7 7. 3.5 naïve CAFÉ café '
         'übung it’s its theatre an. “the harbor” _a_ €5 I\u00a0am . .. ... x').split(' ')
CLASSES = ['number', 'count', 'Number of something', 'Price', 'Price of wine', 'wine', 'City', 'Other city']
CODE = ['x = 1', '    return a + b', 'int main() {', '# a comment', '// another', '`quoted`', '', 'größe += 1',
        'return b + a', 'for (int i = 0; i < n; ++i)']


def text(r, words, most):
    return ' '.join(r.choice(words) for _ in range(r.randint(0, most)))


def cases(metrics):
    r = random.Random(1)
    out = []

    def add(name, answer, truth, classes=None):
        score = getattr(metrics, name)(answer, truth, all_classes=classes or [])
        out.append({'metric': name, 'answer': answer, 'truth': truth, 'classes': classes or [], 'score': score})

    for answer, truth in [('', ''), ('', 'x'), ('x', ''), ('The cat!', 'a cat'), ('cat cat dog', 'cat dog dog'),
                          ('. . .', 'x'), ('one. two', 'two. one'), ('  spaces\n\tand  lines ', 'spaces and lines')]:
        for name in ['qa_f1_score', 'rouge_score', 'code_sim_score']:
            add(name, answer, truth)
    for _ in range(60):
        add('qa_f1_score', text(r, WORDS, 12), text(r, WORDS, 6))
        add('rouge_score', text(r, WORDS, 40), text(r, WORDS, 30))
    for _ in range(40):
        add('code_sim_score', '\n'.join(r.choice(CODE) for _ in range(r.randint(0, 4))), r.choice(CODE))
        named = r.sample(CLASSES, r.randint(1, 3))
        add('classification_score', text(r, named + ['is', 'it'], 5), r.choice(named), r.sample(CLASSES, len(CLASSES)))
    for _ in range(30):
        numbers = text(r, ['5', '12', 'Paragraph 5', 'paragraph', '5.', 'x12y', '05', 'Paragraph 12'], 5)
        add('count_score', numbers, r.choice(['5', '12']))
        add('retrieval_score', numbers, r.choice(['Paragraph 5', 'Paragraph 12']))
    return out


def main():
    sys.path.insert(0, sys.argv[1])
    import metrics
    lines = [json.dumps(case, ensure_ascii=False) for case in cases(metrics)]
    OUT.write_text('[\n' + ',\n'.join(lines) + '\n]\n', encoding='utf-8')


main()
