"""Chinese numbers, dates, money, telephone numbers, fractions and percentages spelled out, as speech says them.

Written to agree with `TextNorm` of SpeechIO's chinese_text_normalization (with every option off), which the official scorer
uses: the same rules in the same order, each replacing the first place where the found text stands. Where that order gives an
odd reading we give it too; `benchmarks/scorer_agreement.py` compares.
"""

import re
import string
from collections.abc import Callable

DIGITS = '零一二三四五六七八九'
# Unit characters and their powers of ten, in the system where 兆 is 10^12.
UNITS = {
  1: '十',
  2: '百',
  3: '千',
  4: '万',
  8: '亿',
  12: '兆',
  16: '京',
  20: '垓',
  24: '秭',
  28: '穰',
  32: '沟',
  36: '涧',
  40: '正',
  44: '载',
}
_UNIT_CHARACTERS = frozenset(UNITS.values())

_MONEY = '((亿|千万|百万|万|千|百)|(亿|千万|百万|万|千|百|)元|(亿|千万|百万|万|千|百|)块|角|毛|分)'
_MEASURES = (
  '匹 张 座 回 场 尾 条 个 首 阙 阵 网 炮 顶 丘 棵 只 支 袭 辆 挑 担 颗 壳 窠 曲 墙 群 腔 砣 座 客 贯 扎 捆 刀 令 打 '
  '手 罗 坡 山 岭 江 溪 钟 队 单 双 对 出 口 头 脚 板 跳 枝 件 贴 针 线 管 名 位 身 堂 课 本 页 家 户 层 丝 毫 厘 分 '
  '钱 两 斤 担 铢 石 钧 锱 忽 (千|毫|微)克 毫 厘 分 寸 尺 丈 里 寻 常 铺 程 (千|分|厘|毫|微)米 撮 勺 合 升 斗 石 盘 碗 '
  '碟 叠 桶 笼 盆 盒 杯 钟 斛 锅 簋 篮 盘 桶 罐 瓶 壶 卮 盏 箩 箱 煲 啖 袋 钵 年 月 日 季 刻 时 周 天 秒 分 旬 纪 岁 '
  '世 更 夜 春 夏 秋 冬 代 伏 辈 丸 泡 粒 颗 幢 堆 条 根 支 道 面 片 张 颗 块'
)
_MEASURE = '(' + '|'.join(_MEASURES.split()) + ')'
_PUNCTUATION = (
  '！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏·〈〉-'
  + string.punctuation
)
_NO_PUNCTUATION = str.maketrans(dict.fromkeys(_PUNCTUATION, ' '))


def digit_by_digit(number: str) -> str:
  """'2008' -> '二零零八'. Only digits are read."""
  return ''.join(DIGITS[int(c)] for c in number)


def cardinal(number: str) -> str:
  """'10234.5' -> '一万零二百三十四点五'. number: digits, at most one point."""
  whole, _, decimals = number.partition('.')
  symbols = _with_units(whole) if len(whole) > 1 else list(digit_by_digit(whole))
  symbols += ['点', *digit_by_digit(decimals)] if decimals else []
  for i, symbol in enumerate(symbols):
    after, before = symbols[i + 1 : i + 2], symbols[i - 1 : i] if i else []
    if symbol == '二' and after and after[0] in _UNIT_CHARACTERS - {'十'}:
      if not before or before[0] in _UNIT_CHARACTERS - {'十'}:
        symbols[i] = '两'
  spoken = ''.join(symbols)
  if spoken.startswith('点'):
    return '零' + spoken
  return spoken[1:] if spoken.startswith('一十') else spoken


def _with_units(digits: str) -> list[str]:
  """Symbols of a whole number; zeros inside are read once, zeros at the end not at all."""
  significant = digits.lstrip('0')
  if not significant:
    return []
  if len(significant) == 1:
    zero = ['零'] if len(digits) > 1 else []
    return [*zero, DIGITS[int(significant)]]
  power = max(p for p in UNITS if p < len(significant))
  return [*_with_units(digits[:-power]), UNITS[power], *_with_units(significant[-power:])]


def _date(text: str) -> str:
  year, has_year, rest = text.partition('年')
  if not has_year:
    year, rest = '', text
  else:
    year = digit_by_digit(year) + '年'
  month, has_month, day = rest.partition('月')
  if not has_month:
    month, day = '', rest
  else:
    month = cardinal(month) + '月'
  return year + month + (cardinal(day[:-1]) + day[-1] if day else '')


def _money(text: str) -> str:
  for number, _ in re.findall(r'(\d+(\.\d+)?)', text):
    text = text.replace(number, cardinal(number))
  return text


def _mobile(text: str) -> str:
  return ''.join(digit_by_digit(part) for part in text.strip('+').split())


def _landline(text: str) -> str:
  return ''.join(digit_by_digit(part) for part in text.split('-'))


def _fraction(text: str) -> str:
  above, below = text.split('/')
  return f'{cardinal(below)}分之{cardinal(above)}'


def _percentage(text: str) -> str:
  return '百分之' + cardinal(text.strip('%'))


# In order. The first group of each is what is replaced.
_RULES: list[tuple[str, Callable[[str], str]]] = [
  (r'\D+((([089]\d|(19|20)\d{2})年)?(\d{1,2}月(\d{1,2}[日号])?)?)', _date),
  (r'\D+((\d+(\.\d+)?)[多余几]?' + _MONEY + r'(\d' + _MONEY + r'?)?)', _money),
  (r'\D((\+?86 ?)?1([38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D', _mobile),
  (r'\D((0(10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D', _landline),
  (r'(\d+/\d+)', _fraction),
  (r'(\d+(\.\d+)?%)', _percentage),
  (r'(\d+(\.\d+)?)[多余几]?' + _MEASURE, cardinal),
  (r'(\d{4,32})', digit_by_digit),
  (r'(\d+(\.\d+)?)', cardinal),
]
_COMPILED = [(re.compile(pattern), spell) for pattern, spell in _RULES]
_LETTERS_AROUND_TWO = re.compile(r'([a-zA-Z]+)二([a-zA-Z]+)')


def spell_out(text: str) -> str:
  """The text with numbers as words and every punctuation mark as a space."""
  text = f'^{text}$'  # so that a number at either end has something beside it
  for pattern, spell in _COMPILED:
    if pattern.pattern.endswith('%)'):
      text = text.replace('％', '%')
    for found in [m[1] for m in pattern.finditer(text)]:
      text = text.replace(found, spell(found), 1)
  for match in list(_LETTERS_AROUND_TWO.finditer(text)):  # B2B and the like were not numbers
    text = text.replace(match[0], f'{match[1]}2{match[2]}', 1)
  return text.lstrip('^').rstrip('$').translate(_NO_PUNCTUATION)
