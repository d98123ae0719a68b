"""Stop words: frequent words of English and Chinese that carry grammar rather than meaning.

in        nothing
out       STOP_WORDS, read by text.py where a run drops them
relies on lists put together for Motet, under its licence (Apache-2.0): the closed classes of either grammar. Words that
          negate (not, no, never, n't; 不, 没, 别) are in neither list: without them a text may say its opposite.
"""

from collections.abc import Mapping
from typing import Literal

_ENGLISH = """
a an the this that these those
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
we us our ours ourselves they them their theirs themselves one ones
who whom whose which what when where why how that whether
am is are was were be been being do does did doing done have has had having
can could may might must shall should will would ought
's 'm 're 've 'll 'd s m re ve ll d
about above across after against along among around at before behind below beneath beside between beyond by down during
for from in into of off on onto out over since through throughout to toward towards under until up upon with within
and or but if because as while although though so than then that unless whereas
all any both each either every few many more most much other others own same several some such
again also just only very too quite rather there here now once ever yet still even
"""
_CHINESE = """
的 地 得 了 着 过 们 之 所 者
我 你 您 他 她 它 我们 你们 他们 她们 它们 咱 咱们 自己 大家 别人 人家
这 那 这个 那个 这些 那些 这里 那里 这儿 那儿 这样 那样 这么 那么 此 其 某 各 每
谁 什么 哪 哪个 哪些 哪里 哪儿 怎么 怎样 怎么样 为什么 多少 几
是 有 在 就是 也是 还有 会 能 能够 可以 可能 应该 应当 要 得以
和 与 及 以及 跟 同 或 或者 而 而且 并 并且 但 但是 可是 然而 却
因为 所以 因此 如果 要是 虽然 尽管 只要 只有 即使 由于 于是 然后 那么
从 自 自从 到 向 往 朝 对 对于 关于 把 被 给 让 使 用 以 按 按照 根据 为 为了 比 由 于 当
也 都 还 又 再 就 才 很 太 更 最 只 已 已经 正 正在 曾 曾经 将 刚 刚才
便 仍 仍然 总是 常常 一直 一起 一样 一些 一点 一下 一个 一种
个 种 些 次 件 位 只 条 上 下 里 中 内 外 前 后 时 时候
吗 呢 吧 啊 呀 哦 嗯 嘛 啦 哈 哎 唉 么 罢了
"""

STOP_WORDS: Mapping[Literal["en", "zh"], frozenset[str]] = {
    "en": frozenset(_ENGLISH.split()),
    "zh": frozenset(_CHINESE.split()),
}
"""in small letters; English as `text_words.py` cuts contractions ("it's" is it and 's)"""
