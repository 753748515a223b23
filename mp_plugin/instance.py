"""Give one object an attribute of its own, for a while."""

from collections.abc import Callable
from typing import Any


def replace_attribute(target: object, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute in an object's own namespace, where it is found before the class's; returns what undoes it.

    `torch.nn.Module.__setattr__` is passed by: a hook is no parameter, buffer or submodule.

    Example:
        >>> class Greeter:
        ...     def greet(self):
        ...         return "hello"
        >>> greeter = Greeter()
        >>> undo = replace_attribute(greeter, "greet", lambda: "hush")
        >>> greeter.greet(), undo(), greeter.greet()
        ('hush', None, 'hello')
    """
    namespace = vars(target)
    had, before = name in namespace, namespace.get(name)
    namespace[name] = value

    def undo() -> None:
        if had:
            namespace[name] = before
        else:
            namespace.pop(name, None)

    return undo
